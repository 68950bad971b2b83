"""The training loss that no model can beat on fresh rows of in-context recall."""

from __future__ import annotations

import math

from mlxhog.mad.tasks.in_context_recall import InContextRecall


def dense_loss_floor(settings: InContextRecall) -> float | None:
    """Return the mean entropy of a dense target in nats; None where no formula is known.

    Keys and values shown for the first time cannot be foreseen, everything else can:
    [ (T/2 - 1) ln K + E ln|values| ] / (T - 1), with E the expected number of different keys among
    n = T/2 - 1 draws. A lower loss on rows that were not trained on means that they leaked.
    """
    if settings.noise[1] or not settings.multi_query:
        return None
    K, n = settings.keys, settings.pairs
    different = K * (1 - (1 - 1 / K) ** n)
    nats = n * math.log(K) + different * math.log(settings.ordinary - K)
    return nats / (settings.seq_len - 1)
