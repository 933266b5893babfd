"""No defense: the backdoored model is evaluated as it is; nothing is purified, so there is nothing to call."""


def none() -> None:
    """Takes no hyper-parameter."""
