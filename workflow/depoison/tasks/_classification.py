"""What tasks of one label for each input share: cross-entropy, and the likeliest class."""

from __future__ import annotations

from depoison.evaluation.metrics import predict
from depoison.training.loop import classification


class Classification:
    """See `depoison.tasks.Task`."""

    loss = staticmethod(classification)
    predict = staticmethod(predict)
