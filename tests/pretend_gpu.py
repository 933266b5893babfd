"""A GPU that is none: tensors "on cuda" are computed on the CPU, but behave as a GPU's where code goes wrong.

    python tests/pretend_gpu.py run results/cells/…

is `depoison run` on it. An operation raises here where it would on a real one: tensors on both devices, a generator of the
other device, a NumPy view, an operation that CUDA has only in a way that is not deterministic. So does one that draws random
numbers on the device, which our code leaves to layers such as dropout.

Python sees the device `cuda:0`; PyTorch's C++ sees `meta`, which it lets do anything, autograd included, without a driver.
Only autocast has no effect.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock, patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from depoison.cli import main

aten = torch.ops.aten

CUDA, SHELL, META = torch.device("cuda", 0), torch.device("meta"), torch.device("meta", 1)
"""The device; what PyTorch's C++ takes it for; and what it is told when code asks for `meta` itself."""
COPYING = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Operations that take tensors of both devices: for indexing, the indices may be on the CPU."""
DRAWING = {aten.native_dropout, aten.bernoulli, aten.bernoulli_}
"""Random numbers of layers, seeded anew in each epoch."""
NOT_DETERMINISTIC = {
    getattr(aten, name)
    for name in (
        "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
        "adaptive_max_pool3d_backward", "avg_pool3d_backward", "fractional_max_pool2d_backward",
        "max_pool3d_with_indices_backward", "max_unpool2d", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
        "_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward",
        "upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward",
        "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward", "nll_loss2d_forward",
        "_ctc_loss_backward", "put", "put_", "histc", "kthvalue", "median", "grid_sampler_2d_backward",
        "grid_sampler_3d_backward", "cumsum", "scatter_reduce",
    )
}  # fmt: skip
"""What torch.use_deterministic_algorithms refuses on CUDA, by its documentation (`cumsum`: of floats)."""
DRIVER = {
    "cuda.is_available": True, "cuda.get_device_name": "none", "cuda.max_memory_allocated": 0,
    "accelerator.current_stream": Mock(is_capturing=lambda: False),
}  # fmt: skip
"""What the driver's functions tell."""


class OnGpu(Tensor):
    """A tensor that claims to be on the device.

    Attributes:
        held: the same on the CPU.
    """

    held: Tensor
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        shell = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device=SHELL)
        made = Tensor._make_subclass(cls, shell, False, device_for_backend_keys=CUDA)
        made.held = held
        return made


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Keeps the name of the device from what would look for a driver."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in (torch.device, torch.get_device_module, torch._C._nn._parse_to):
            args, kwargs = tuple(map(_renamed, args)), {key: _renamed(value) for key, value in kwargs.items()}
        if function is Tensor.tolist and isinstance(args[0], OnGpu):
            return args[0].held.tolist()
        return function(*args, **kwargs)


def _renamed(value: Any) -> Any:
    if not isinstance(value, str | torch.device):
        return value
    return {"cuda": SHELL, "meta": META}.get(str(value).partition(":")[0], value)


def _computed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    operation, asked = function.overloadpacket, kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    tensors: list[Tensor] = []
    _each(Tensor, tensors.append, [args, list(kwargs.values())])
    there = [x for x in tensors if isinstance(x, OnGpu)]
    on_gpu = bool(there) if asked is None else asked == SHELL
    if not there and asked not in (SHELL, META):  # all on the CPU
        return function(*args, **kwargs)
    if operation is aten.copy_:  # to where the first one is
        on_gpu = isinstance(args[0], OnGpu)
    if there and operation not in COPYING:
        indices = args[1] if operation in INDEXING else []
        here = [x for x in tensors if not isinstance(x, OnGpu) and not any(x is index for index in indices)]
        shapes = [tuple(x.shape) for x in here if x.dim()]  # numbers may come from the CPU
        if shapes:
            raise RuntimeError(f"{function}: tensors on the GPU, and of shapes {shapes} on the CPU")
    if on_gpu:
        _refuse(function, there, kwargs.get("generator"))
    if asked in (SHELL, META):
        kwargs = kwargs | {"device": torch.device("cpu") if on_gpu else SHELL}
    found = function(*_held(args), **{key: _held(value) for key, value in kwargs.items()})
    if not on_gpu or operation is aten._local_scalar_dense:
        return found
    found = _each(Tensor, OnGpu, found)
    return return_and_correct_aliasing(function, args, kwargs, found) if there else found


def _refuse(function: Any, tensors: list[Tensor], generator: torch.Generator | None) -> None:
    """Raises RuntimeError where CUDA or the project's rules would not let this pass, whatever the tensors hold."""
    operation = function.overloadpacket
    if torch.Tag.nondeterministic_seeded in function.tags:
        if generator is not None:
            raise RuntimeError(f"{function}: a generator of the CPU cannot draw on the GPU")
        if operation not in DRAWING:
            raise RuntimeError(f"{function}: draws on the GPU")
    counting = operation is aten.cumsum and not tensors[0].is_floating_point()
    if torch.are_deterministic_algorithms_enabled() and operation in NOT_DETERMINISTIC and not counting:
        raise RuntimeError(f"{function}: has no deterministic implementation on a GPU")


def _held(tree: Any) -> Any:
    return _each(OnGpu, lambda tensor: tensor.held, tree)


def _each(kind: type, change: Callable[[Any], Any], tree: Any) -> Any:
    """What an operation takes or returns, tensors and lists, with each of a kind changed; pytree takes far longer."""
    if isinstance(tree, kind):
        return change(tree)
    return type(tree)([_each(kind, change, one) for one in tree]) if isinstance(tree, list | tuple) else tree


@contextlib.contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """The device; in this context only."""

    def telling(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in DRIVER.items():
            stack.enter_context(patch(f"torch.{name}", telling(value)))
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot change its class in place
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwritten)
        stack.enter_context(_Operations())
        stack.enter_context(_Calls())
        yield torch.device("cuda")


if __name__ == "__main__":
    os.environ["DEPOISON_DEVICES"] = "0"
    with pretend_gpu():
        sys.exit(main())
