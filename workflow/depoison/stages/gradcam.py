"""Stage `gradcam`: where a model looks on triggered test images → gradcam.safetensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from depoison.errors import DepoisonError
from depoison.files import save_tensors
from depoison.models.activations import last_convolution, outputs_of
from depoison.models.classifier import Classifier
from depoison.rng import Rng
from depoison.stages.inputs import read_dataset, read_model
from depoison.stages.measure import Test
from depoison.stages.runner import Job


def run(job: Job) -> None:
    """Write triggered `images` (n, C, H, W) as stored, their `heat` (n, H, W) float32, and the class that each is `predicted`
    to be, which that is of, (n,) int64; `labels`, what they show, and `indices` into the test set are (n,) int64, too.

    The images are in a random order that is the same for every model of an attack and a seed; n is at most `count`. The maps
    are of the last convolution, and in fp32.

    Raises:
        DepoisonError: inputs that are no images, a clean model, one without convolutions, or outputs that are no numbers.
    """
    dataset = read_dataset(job.upstream("dataset"))
    if len(dataset.shape) != 3:
        raise DepoisonError(f"gradcam: {dataset.task.inputs} have no pixels to look at; valid: images")
    test = Test.of(job.upstream("backdoored"), dataset)
    if not len(test.kept):
        raise DepoisonError("gradcam: the attack none has no trigger; valid: any other attack")
    order = torch.randperm(len(test.kept), generator=Rng(job.seed, "gradcam").generator("order"))
    chosen = order[: job.parameters["count"]]
    images, indices = test.triggered[chosen], test.kept[chosen]
    model = read_model(job.upstream("model"), dataset).to(job.device)
    heat, predicted = grad_cam(model, last_convolution(model, images[:1]), images)
    found = {"images": images, "heat": heat, "predicted": predicted}
    save_tensors(job.folder / "gradcam.safetensors", found | {"labels": test.labels[indices], "indices": indices})


def grad_cam(model: Classifier, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient-weighted class activation mapping. Selvaraju et al., ICCV 2017, Eq. 1 and 2.

    L = relu(sum over k of a_k A_k) with a_k the mean over positions of the gradient of y_c by A_k: A_k is channel k of the
    layer's output, y_c the logit of the class that the model predicts. L is enlarged to the image, bilinearly.

    Args:
        layer: the name of a convolution.
        images: (n, C, H, W), as they are stored.

    Returns:
        (n, H, W) float32 maps and (n,) int64 classes, on the CPU.

    Raises:
        DepoisonError: outputs that are no numbers.
    """
    with outputs_of(model.get_submodule(layer)) as found:
        logits = model(images.to(model.device))
    if not logits.isfinite().all():
        raise DepoisonError("gradcam: the model's outputs are no numbers; its training or tuning diverged")
    predicted = logits.argmax(1, keepdim=True)
    (slopes,) = torch.autograd.grad(logits.gather(1, predicted).sum(), found[-1])
    maps = (slopes.mean((2, 3), keepdim=True) * found[-1]).sum(1, keepdim=True).relu().detach().cpu()
    return interpolate(maps, images.shape[2:], mode="bilinear")[:, 0].contiguous(), predicted[:, 0].cpu()
