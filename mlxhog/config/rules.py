"""Rules spelt as a word with numbers: of late gradients, sparse steps, workers made slow.

Step size by `staleness_lr` of a gradient that comes tau updates late, with P workers (with
`--overlap` P is one more, since the worker's own last step comes in between, too):

    staleness_lr      step size
    none              lr
    linear:C          lr / (1 + C tau); C is 0.5 by default
    exp:D             lr D^tau; D is 0.9 by default
    delay_adaptive    lr min(1, (P - 1) / tau): lr up to the usual age, and less for older gradients
    drop:T            lr up to tau = T, and 0 beyond; T is 2 P by default

Sources: linear, Zhang et al. 2015, arXiv:1511.05950 (there lr / tau); delay_adaptive and drop,
Koloskova et al. 2022, arXiv:2206.08307, and Mishchenko et al. 2022, arXiv:2206.07638, whose rules
know the smoothness of the objective. lr / P and lr / sqrt(P), which do not depend on tau, are
`lr_workers`.

Workers that are slowed down, as `slow` names them by their ranks in `workers`, from 0:

    0=1.5            every gradient of the worker with rank 0 takes 1.5 times as long
    1=random:0.2:3   each of its gradients takes 3 times as long with probability 0.2
    1=late:10        it takes no batch in the first 10 seconds of training
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from mlxhog.base.quantities import parse_duration_s, parse_number
from mlxhog.errors import ConfigError

_Forms = Mapping[str, tuple[float | None, Callable[[float], bool]] | None]
"""Word -> the number that it has by default, and which numbers are legal; None if it has none."""

_STALENESS: _Forms = {
    "none": None,
    "linear": (0.5, lambda c: c >= 0),
    "exp": (0.9, lambda d: 0 <= d <= 1),
    "delay_adaptive": None,
    "drop": (None, lambda t: t >= 0),
}
_COMPENSATION: _Forms = {
    "none": None, "constant": (0.04, lambda f: f > 0), "adaptive": (2.0, lambda f: f > 0),
}  # fmt: skip
_SPARSE: _Forms = {
    "none": None, "topk": (0.0, lambda f: 0 < f <= 1), "threshold": (0.0, lambda f: f > 0),
}  # fmt: skip
_SLOW_FORMS = (
    "RANK=FACTOR, RANK=random:PROBABILITY:FACTOR or RANK=late:TIME for each worker, such as "
    "0=1.5,1=random:0.2:3 (ranks from 0, factors at least 1, probabilities up to 1)"
)


def _read(text: str, forms: _Forms, expected: str) -> tuple[str, float | None]:
    """Return word and number of `WORD` or `WORD:NUMBER`.

    Raises:
        ValueError: the word is unknown, or the number not legal.
    """
    word, colon, number = text.partition(":")
    try:
        if (form := forms[word]) is None:
            if colon:
                raise ValueError
            return word, None
        value, is_legal = form
        value = parse_number(number) if colon else value
        if value is not None and not is_legal(value):
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(f"wanted {expected}; got {text!r}") from None
    return word, value


@dataclass(frozen=True)
class StalenessRule:
    """A rule of `staleness_lr`.

    Attributes:
        kind: none, linear, exp, delay_adaptive or drop.
        number: its C, D or T; None if it has none, and for drop with T = 2 P.
    """

    kind: str
    number: float | None = None

    @classmethod
    def parse(cls, text: str) -> StalenessRule:
        """Read "none", "linear:0.5", "exp", "delay_adaptive" or "drop:8".

        Raises:
            ValueError: none of these.
        """
        expected = (
            "none, linear:C with C >= 0, exp:D with 0 <= D <= 1, delay_adaptive, or drop:T with "
            "T >= 0"
        )
        return cls(*_read(text, _STALENESS, expected))

    def factor(self, staleness: int, workers: int) -> float:
        """Factor of lr, in [0, 1]; 0 leaves the gradient out.

        Args:
            staleness: updates by others between the read and the write, >= 0.
            workers: P, >= 1.
        """
        if self.kind == "linear":
            assert self.number is not None
            return 1.0 / (1.0 + self.number * staleness)
        if self.kind == "exp":
            assert self.number is not None
            return float(self.number**staleness)
        if self.kind == "delay_adaptive":
            usual = max(1, workers - 1)
            return min(1.0, usual / staleness) if staleness else 1.0
        if self.kind == "drop":
            return float(staleness <= (2 * workers if self.number is None else self.number))
        return 1.0


@dataclass(frozen=True)
class Compensation:
    """A rule of `delay_compensation`.

    Source: Zheng et al. 2017, DC-ASGD, arXiv:1609.08326.

    Attributes:
        factor: lambda.
        adaptive: whether it is divided by the root of the gradient's mean square.
    """

    factor: float
    adaptive: bool

    @classmethod
    def parse(cls, text: str) -> Compensation | None:
        """Read "none", "constant:0.04" or "adaptive:2"; the numbers may be left out.

        Raises:
            ValueError: none of these.
        """
        kind, factor = _read(text, _COMPENSATION, "none, constant:F or adaptive:F with F > 0")
        return None if factor is None else cls(factor, kind == "adaptive")


@dataclass(frozen=True)
class Selection:
    """A rule for one parameter at a time; of a row-sparse step it chooses from the touched rows.

    kind "topk": the ceil(share * elements) of largest magnitude, at least one; among equals the
    first. Source: Stich, Cordonnier and Jaggi 2018, arXiv:1809.07599.
    kind "threshold": every element of magnitude >= share * lr. The unit is the step size, so the
    written part does not depend on the schedule; AdamW's steps are about 1 unit, SGD's are the
    gradient. Related: Strom 2015, Interspeech (there a fixed number).

    Zeros are never written.
    """

    kind: Literal["topk", "threshold"]
    share: float

    @classmethod
    def parse(cls, text: str) -> Selection | None:
        """Read "none", "topk:0.01" or "threshold:2".

        Raises:
            ValueError: none of these.
        """
        expected = "none, topk:F with a share 0 < F <= 1, or threshold:F with F > 0"
        kind, share = _read(text, _SPARSE, expected)
        return None if share is None else cls("topk" if kind == "topk" else "threshold", share)


@dataclass(frozen=True)
class Slowdown:
    """How one worker is slowed down on purpose, for experiments and tests.

    Attributes:
        factor: of the time of a gradient, at least 1.
        probability: that a gradient takes this time.
        late_s: seconds of training before it takes its first batch.
    """

    factor: float = 1.0
    probability: float = 1.0
    late_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Slowdown:
        """Read the text behind the rank.

        Raises:
            ValueError: it is not of a form above.
        """
        kind, *numbers = text.strip().split(":")
        if kind == "late":
            (late,) = numbers
            slowdown = cls(late_s=parse_duration_s(late))
        elif kind == "random":
            probability, factor = map(parse_number, numbers)
            slowdown = cls(factor=factor, probability=probability)
        else:
            (factor,) = map(parse_number, (kind, *numbers))
            slowdown = cls(factor=factor)
        if slowdown.factor < 1 or not 0 <= slowdown.probability <= 1 or slowdown.late_s < 0:
            raise ValueError(f"wanted {_SLOW_FORMS}")
        return slowdown

    def factor_of(self, seed: int, rank: int, step: int) -> float:
        """The factor of one gradient: a function of these numbers, the same on every machine."""
        if self.probability == 1:
            return self.factor
        drawn = Random(f"mlxhog-slow-1|{seed}|{rank}|{step}").random()
        return self.factor if drawn < self.probability else 1.0


def parse_slowdowns(text: str | None) -> Mapping[int, Slowdown]:
    """Return the slowdowns by rank; None names no worker.

    Raises:
        ValueError: a part cannot be read, or a rank appears twice.
    """
    slowdowns: dict[int, Slowdown] = {}
    for part in [] if text is None else text.split(","):
        rank, equals, how = part.strip().partition("=")
        try:
            if not (equals and rank.isdecimal()):
                raise ValueError
            slowdown = Slowdown.parse(how)
        except ValueError:
            raise ValueError(f"wanted {_SLOW_FORMS}; got {part.strip()!r}") from None
        if int(rank) in slowdowns:
            raise ValueError(f"worker {int(rank)} appears in {text!r} twice; keep one")
        slowdowns[int(rank)] = slowdown
    return slowdowns


def check_ranks(text: str | None, workers: int) -> None:
    """Refuse ranks beyond the workers of the run.

    Raises:
        ConfigError: there are fewer workers.
    """
    for rank in parse_slowdowns(text):
        if rank >= workers:
            ranks = "rank 0" if workers == 1 else f"ranks 0 to {workers - 1}"
            raise ConfigError(
                f"slow names worker {rank}, and the run has {workers} with {ranks}; name one of "
                "these, or raise --workers"
            )
