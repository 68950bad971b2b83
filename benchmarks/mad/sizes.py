"""The sizes of `benchmarks/search_pays.py`, and what follows from them.

These are the language models of equal parameters, the ends of their training, and the study that
scores the architectures of the correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mad.probes import ARCHITECTURES, Budget, fitted, sequence

from mlxhog.cli.mad.session import seeds
from mlxhog.mad.study.study import Study
from mlxhog.mad.tasks import BENCHMARK, find
from mlxhog.models.families import param_count
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import canonical
from mlxhog.models.registry import load_candidate

XLSTM, TRANSFORMER = "xLSTM[7:1]", "Transformer"
DEPTH = 8

MIXERS = (
    "mlstm", "slstm(conv=4)", "mh-attention", "mh-sliding-attention", "path", "gla", "ssd",
    "mamba3", "delta-net", "gated-delta-net", "gated-delta-product", "kda", "rwkv7", "gated-conv",
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """The sizes of a mode; they decide the numbers.

    Attributes:
        search_budget: time, or runs, of the search.
        mixers: of the space.
        tasks: of suite smoke, by commas; None is all six.
        steps: most steps of a candidate; None is the suite's.
        dim: width of candidates; None is the suite's.
        width: of xLSTM[7:1], whose number of parameters the other language models have.
        tokens: of a training at equal tokens.
        seconds: of a training at equal seconds.
        n_seeds: of the language models.
        mad_seeds: of the MAD scores of the correlation.
        architectures: first ones of the list.
    """

    search_budget: str = "30m"
    mixers: tuple[str, ...] = MIXERS
    tasks: str | None = None
    steps: int | None = None
    dim: int | None = None
    width: int = 128
    tokens: int = 600_000
    seconds: float = 60.0
    n_seeds: int = 5
    mad_seeds: int = 1
    architectures: int = len(ARCHITECTURES)


LONG = Scale()
QUICK = Scale(
    search_budget="6", mixers=("mlstm", "gated-conv"), tasks="CR,M", steps=50, dim=32,
    width=48, tokens=20_000, seconds=8.0, n_seeds=2, mad_seeds=1, architectures=4,
)  # fmt: skip


def rivals(scale: Scale) -> dict[str, MADConfig]:
    """The two models that the winner has to beat."""
    transformer = sequence("mh-attention swiglu", DEPTH // 2)
    return {XLSTM: xlstm(scale), TRANSFORMER: fitted(transformer, param_count(xlstm(scale)))}


def xlstm(scale: Scale) -> MADConfig:
    """XLSTM[7:1] of the first paper, in eight blocks."""
    return replace(load_candidate("mad-7to1-v1"), hidden_size=scale.width)


def budgets(scale: Scale) -> dict[str, Budget]:
    """Both ways to end a training."""
    return {"tokens": Budget(tokens=scale.tokens), "seconds": Budget(seconds=scale.seconds)}


def probe(name: str, scale: Scale) -> MADConfig:
    """A language model of one of the architectures, of as many parameters as the rivals."""
    return fitted(sequence(ARCHITECTURES[name], DEPTH // 4), param_count(xlstm(scale)))


def study_of(scale: Scale, names: Sequence[str]) -> Study:
    """The study that scores the architectures."""
    chosen = {} if scale.tasks is None else {find(task).name for task in scale.tasks.split(",")}
    return Study(
        candidates=tuple(canonical(sequence(ARCHITECTURES[name])) for name in names),
        suite="smoke",
        dim=scale.dim,
        tasks=tuple(task for task in BENCHMARK if task in chosen),
        seeds=seeds(str(scale.mad_seeds)),
        protocol={} if scale.steps is None else {"steps": scale.steps},
    )
