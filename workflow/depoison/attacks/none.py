"""No attack: a model trained on clean data. `depoison.attacks.base.make` answers for it with None."""


def none() -> None:
    """Takes no hyper-parameter."""
