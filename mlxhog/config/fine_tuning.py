"""Options of fine-tuning and of early stopping.

Passes over the text and early stopping are for runs of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxhog.config.options import option

if TYPE_CHECKING:
    from mlxhog.config.config import TrainConfig

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


def contradictions(config: TrainConfig) -> list[tuple[str, str]]:
    """Pairs (option, contradiction and the way out)."""
    pairs = _of_origin(config)
    if config.epochs is not None:
        for name in ("steps", "tokens", "time"):
            if (value := getattr(config, name)) is not None:
                problem = f"is {config.epochs}, and {name} {value:g} is a budget, too"
                pairs.append(("epochs", f"{problem}; leave one of them out, or set it to none"))
        if config.follow is not None:
            pairs.append(("epochs", "a followed folder has no last text; leave epochs out"))
    if not config.eval_every.on:
        for name in ENDS:
            if getattr(config, name):
                problem = "needs held-out evaluations, and eval_every is off"
                pairs.append((name, f"{problem}; set eval_every, such as 10s, or 100 for steps"))
    return pairs


def _of_origin(config: TrainConfig) -> list[tuple[str, str]]:
    """Contradictions of the options for the first weights."""
    if config.init_from is None:
        problem = "is for a run that begins with the weights of another; add init_from"
        return [("resize_vocab", problem)] if config.resize_vocab else []
    if config.resume is not None:
        problem = f"resume {config.resume} has its own weights; leave one of the two out"
        return [("init_from", problem)]
    return []
