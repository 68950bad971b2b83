"""Options of fine-tuning and of early stopping.

Passes over the text and early stopping are for runs of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from mlxhog.config.options import option

ORIGINS = ("init_from", "resize_vocab")
"""Options of the weights that a new run begins with."""

ENDS = ("patience", "stop_at_loss", "keep_best")
"""Options that use held-out evaluations while training."""

WITHOUT_ENDS: dict[str, Any] = {
    "epochs": None, "patience": None, "stop_at_loss": None, "keep_best": False,
}  # fmt: skip
"""Their values in a run that ends otherwise."""

_tuning = partial(option, group="fine-tuning")
_ends = partial(option, group="epochs and early stopping")


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The part of `TrainConfig` that fine-tuning needs."""

    init_from: str | None = _tuning(
        None,
        "begin with the weights, and only these, of a checkpoint: its path, a run, latest, or a "
        "directory of transformers",
    )
    resize_vocab: bool = _tuning(
        False,
        "init_from: allow another vocabulary; rows of tokens with the same text are kept",
    )
    loss_on: str = _tuning(
        "assistant",
        "what is learnt of conversations, and of prompts with completions: the answers only, or "
        "all of the text",
        choices=("assistant", "all"),
    )
    context: str = _tuning(
        "frozen",
        "conversations, prompts with completions: gradients stop where the completion begins, at "
        "the state after the prompt, or flow through the prompt as well; it is learnt in neither "
        "case",
        choices=("frozen", "trained"),
    )
    epochs: int | None = _ends(
        None, "end after this number of passes over the training text", unit="passes", low=1
    )
    patience: int | None = _ends(
        None,
        "also end after this number of held-out evaluations in a row without a new best; keeps "
        "the best as with keep_best",
        unit="evaluations",
        low=1,
        none="off",
    )
    stop_at_loss: float | None = _ends(
        None,
        "also end when a held-out evaluation reaches this number of bits per byte, or fewer",
        unit="bits per byte",
        above=0,
        none="off",
    )
    keep_best: bool = _ends(
        False,
        "save after every held-out evaluation that is the best so far, and keep that checkpoint: "
        "checkpoints/best",
    )

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluation's checkpoint is saved and kept."""
        return self.keep_best or self.patience is not None
