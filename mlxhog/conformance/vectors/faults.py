"""Guess the kind of fault of results that depart from the expected ones.

A *hypothesis* is the reference with one change: of its inputs (a key without its scale, a gate of
the position before), its operators (a stabilizer that is missing), its cotangents, or its results
(a transposed state, a wrong sign). It explains a tensor if the results are within a few tolerances
of it in most cases. Guesses are the hypotheses that explain the most tensors; what none explains
may have a pattern: values that are not finite, noise of the size of a narrower type, or cases that
have something in common.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, groupby
from typing import Any, NamedTuple

import numpy as np

from mlxhog.conformance.compare import ComparedTensor
from mlxhog.conformance.subject import Array, Results
from mlxhog.conformance.vectors.case import STEPS, Case
from mlxhog.conformance.vectors.equations import Equations
from mlxhog.conformance.vectors.export import EQUATIONS
from mlxhog.models.ops.eager.ops_float64 import one_thread

MAX_GUESSES = 3
SLACK = 4.0  # tolerances that a hypothesis may be off; a case's are those of the right results
CLOSER = 0.25  # of the deviation from the expected tensor: a hypothesis must be nearer
MOST = 0.7  # share of a tensor's cases that a hypothesis or a pattern has to explain

Inputs = Mapping[str, Any]
Change = Callable[[Any, Inputs], Inputs]
"""From array functions and tensors by name to the tensors that are changed; None is absent."""


class Judged(NamedTuple):
    """A case, an implementation's results of it, and their comparison."""

    case: Case
    results: Results
    rows: Sequence[ComparedTensor]

    def failed(self) -> dict[str, ComparedTensor]:
        """Return the rows that failed by the names of their tensors."""
        return {name_of(row): row for row in self.rows if not row.ok}


@dataclass(frozen=True)
class Guess:
    """A kind of fault, and the tensors that it explains."""

    kind: str
    equations: str
    tensors: Sequence[str]

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(self.tensors)} of {self.equations})"


class Hypothesis(NamedTuple):
    """A kind of fault, and the results that a case has with it; others are as expected."""

    kind: str
    results: Callable[[Case], Results]


def guesses(entries: Sequence[Judged]) -> list[Guess]:
    """Return what may be wrong, the likeliest first; nothing if all is right."""
    made, patterns = list[Guess](), list[Guess]()
    by_equations = sorted(entries, key=lambda entry: entry.case.equations)
    for name, group in groupby(by_equations, key=lambda entry: entry.case.equations):
        own = [*group]
        left = {tensor for entry in own for tensor in entry.failed()}
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):
            hypotheses = _hypotheses(own) if left else ()
            explained = {one: _explained(one, own, left) for one in hypotheses}
        while explained:
            best = max(explained, key=lambda one: len(explained[one] & left))
            tensors = explained.pop(best) & left
            if tensors:
                made.append(Guess(best.kind, name, sorted(tensors)))
                left -= tensors
        if left and (kind := _pattern(own, left)):
            patterns.append(Guess(kind, name, sorted(left)))
    made.sort(key=lambda guess: -len(guess.tensors))
    return [*made, *patterns][:MAX_GUESSES]


def name_of(row: ComparedTensor) -> str:
    """Return the name of a row's tensor, such as "h" or "steps.state.C"."""
    return row.what.partition("/")[2]


def _explained(one: Hypothesis, entries: Sequence[Judged], names: set[str]) -> set[str]:
    """Return the tensors that a hypothesis explains, in most cases that fail and most others."""
    told = {name: {False: list[bool](), True: list[bool]()} for name in names}
    for entry in sorted(entries, key=lambda entry: not entry.failed()):
        wanted = {**entry.case.expected, **one.results(entry.case)}
        for row in entry.rows:
            if row.ok and _length(entry.case) == 1:
                continue  # programs often have other code for a single position
            if (name := name_of(row)) in told:
                equal = _equals(row, entry, wanted[name.removeprefix(STEPS)])
                told[name][row.ok].append(equal)
        told = {name: own for name, own in told.items() if all(map(_mostly, own.values()))}
        if not told:
            break
    return {*told}


def _mostly(answers: Sequence[bool]) -> bool:
    return sum(answers) >= MOST * len(answers)


def _equals(row: ComparedTensor, entry: Judged, wanted: Array) -> bool:
    """Whether a result is that of a hypothesis, and not nearly the expected one."""
    got, expected = entry.results[name_of(row)].astype(np.float64), entry.case.expected[row.against]
    scale = max(1.0, _largest(wanted) / (_largest(expected) or 1.0))
    most = SLACK * scale * row.tolerance
    if row.max_abs is not None and not row.ok:
        most = min(most, CLOSER * row.max_abs)
    return bool(np.all(np.abs(got - wanted) <= most))


def _largest(x: Array) -> float:
    return float(np.abs(x).max(initial=0.0))


# -- hypotheses ----------------------------------------------------------------------------------


def _mlstm_without(term: str, ops: Any, x: Inputs, options: Mapping[str, float]) -> dict[str, Any]:
    """Return the results of an mLSTM without its stabilizer in F, I, the floor or the gradient."""
    xp, eps = ops.xp, options["eps"]
    q, k, v, i, f = (x[name] for name in "qkvif")
    C, n, m = (x.get(f"state.{name}") for name in "Cnm")
    if C is None or n is None or m is None:
        n, m = 0.0 * k[:, 0], 0.0 * i[:, 0]
        C = n[..., None] * v[:, 0, :, None]
    hs, resets = list[Any](), x.get("reset_mask")
    for t in range(q.shape[1]):
        if resets is not None:
            goes_on = (resets[:, t] == 0)[:, None]
            C, n, m = C * goes_on[..., None, None], n * goes_on[..., None], m * goes_on
        lf, before = xp.log_sigmoid(f[:, t]), m
        m = xp.maximum(lf + m, i[:, t])
        own, old = (xp.stop_gradient(y) if term == "gradient" else y for y in (m, before))
        F = xp.exp(lf if term == "F" else lf + old - own)[..., None]
        I = xp.exp(i[:, t] if term == "I" else i[:, t] - own)[..., None]  # noqa: E741
        n, C = F * n + I * k[:, t], F[..., None] * C + (I * k[:, t])[..., None] * v[:, t, :, None]
        q_t = q[:, t] * q.shape[-1] ** -0.5
        num, den = (q_t[..., None, :] @ C)[..., 0, :], (q_t * n).sum(-1)
        floor = xp.ones_like(m) if term == "floor" else xp.exp(-own)
        hs.append(num / (xp.maximum(xp.abs(den), floor) + eps)[..., None])
    return {"h": xp.stack(hs, 1), "state.C": C, "state.n": n, "state.m": m}


STABILIZERS = {
    "floor": "a missing stabilizer term, exp(-m) in the floor of the denominator",
    "F": "a missing stabilizer term, m - m' in the exponent of the forget gate",
    "I": "a missing stabilizer term, m' in the exponent of the input gate",
    "gradient": "a stabilizer that is held constant in the gradient",
}
QUERIES, KEYS, GATES = ("q", "r", "C"), ("k", "B"), ("f", "log_decay", "w", "dt")
OPEN = {"f": 1e4, "log_decay": 0.0, "w": 0.0, "beta": 1.0, "i": 0.0, "o": 1e4}
"""Values with which a gate is as good as none."""


def _hypotheses(entries: Sequence[Judged]) -> Iterator[Hypothesis]:
    case = entries[0].case
    yield Hypothesis("a missing stabilizer", _unstabilized)
    yield Hypothesis("a transposed state", partial(_rearranged, ndim=4, axes=(-1, -2), of="state."))
    yield Hypothesis("positions and heads that are swapped", partial(_rearranged, axes=(1, 2)))
    gradients = [name for name in case.expected if name.startswith("grad.")]
    for a, b in combinations(gradients, 2):
        if case.expected[a].shape == case.expected[b].shape:
            kind = f"gradients that are swapped, {a} and {b}"
            yield Hypothesis(kind, partial(_swapped, a, b))
    yield Hypothesis("a wrong sign", partial(_times, -1.0))
    yield Hypothesis("zeros in place of a result or gradient", partial(_times, 0.0))
    equations = EQUATIONS.get(case.equations)
    if equations is not None and equations.version == case.version:
        for kind, change in _changes(equations):
            yield Hypothesis(kind, partial(_results, equations, change))
        for term, kind in STABILIZERS.items() if case.equations == "mlstm" else ():
            own = replace(equations, compute=partial(_mlstm_without, term))
            yield Hypothesis(kind, partial(_results, own, _same))
        if "eps" in equations.options:
            without = replace(equations, options={**equations.options, "eps": 0.0})
            yield Hypothesis("a missing eps", partial(_results, without, _same))
        kind = "a gradient without that of the final state"
        yield Hypothesis(kind, partial(_results, equations, _same, carries=False))
    for factor in sorted({x for entry in entries for x in _factors(entry)}):
        yield Hypothesis(f"a wrong factor, {factor:.4g}", partial(_times, factor))


def _changes(equations: Equations) -> Iterator[tuple[str, Change]]:
    roles = {one.name: one.role for one in equations.tensors}
    inputs = [name for name, role in roles.items() if role == "input"]
    for names, kind in ((KEYS, "key"), (QUERIES, "query")):
        for name in (name for name in names if name in inputs):
            yield f"an unscaled {kind}", partial(_scaled, name, 0.5)
            yield f"a {kind} that is scaled once too often", partial(_scaled, name, -0.5)
    for name in (name for name in (*GATES, "i") if name in inputs):
        kind = "an input gate" if name == "i" else "a forget gate"
        for first in (1.0, 0.0):
            yield f"{kind} taken at t - 1", partial(_earlier, name, first)
        yield f"{kind} taken at t + 1", partial(_later, name)
    for name in (name for name in OPEN if name in inputs):
        yield f"a gate that is ignored, {name}", partial(_constant, name, OPEN[name])
    parameters = [name for name, role in roles.items() if role == "parameter"]
    for name in (name for name in parameters if name != "ridge"):  # a singular matrix without it
        yield f"a parameter that is ignored, {name}", partial(_constant, name, 0.0)
    states = [name for name, role in roles.items() if role == "state"]
    yield "an initial state that is ignored", lambda xp, x: dict.fromkeys(states)
    yield "a document boundary that is ignored", lambda xp, x: {"reset_mask": None}
    yield "a transposed state", partial(_transposed, states)


def _transposed(states: Sequence[str], xp: Any, x: Inputs) -> Inputs:
    matrices = [name for name in states if name in x and x[name].ndim == 4]
    return {name: _reordered(x[name], -1, -2) for name in matrices}


def _same(xp: Any, x: Inputs) -> Inputs:
    return {}


def _scaled(name: str, power: float, xp: Any, x: Inputs) -> Inputs:
    return {name: x[name] * x[name].shape[-1] ** power}


def _earlier(name: str, first: float, xp: Any, x: Inputs) -> Inputs:
    return {name: xp.concatenate([first * x[name][:, :1], x[name][:, :-1]], 1)}


def _later(name: str, xp: Any, x: Inputs) -> Inputs:
    return {name: xp.concatenate([x[name][:, 1:], x[name][:, -1:]], 1)}


def _constant(name: str, value: float, xp: Any, x: Inputs) -> Inputs:
    return {name: 0.0 * x[name] + value}


def _reordered(x: Any, a: int, b: int) -> Any:
    """Return the elements in the order in which they lie with two axes swapped."""
    return x.swapaxes(a, b).reshape(x.shape)


def _results(equations: Equations, change: Change, case: Case, *, carries: bool = True) -> Results:
    """Return the results of changed equations; `carries` is whether final states have gradients."""

    def compute(ops: Any, x: Inputs, options: Any) -> Any:
        return equations.compute(ops, {**x, **change(ops.xp, x)}, options)

    own = {n: x for n, x in case.cotangents.items() if carries or not n.startswith("state.")}
    return replace(equations, compute=compute).results(case.inputs, own)


def _unstabilized(case: Case) -> Results:
    """Return states at the scale 1 in place of exp(-m)."""
    if (m := case.expected.get("state.m")) is None:
        return {}
    states = {name: case.expected.get(name) for name in ("state.C", "state.c", "state.n")}
    scaled = {
        name: x * np.exp(m).reshape(m.shape + (1,) * (x.ndim - m.ndim))
        for name, x in states.items()
        if x is not None
    }
    return {**scaled, "state.m": np.zeros_like(m)}


def _rearranged(case: Case, axes: tuple[int, int], ndim: int = 3, of: str = "") -> Results:
    return {
        name: _reordered(x, *axes)
        for name, x in case.expected.items()
        if x.ndim >= ndim and name.startswith(of)
    }


def _swapped(a: str, b: str, case: Case) -> Results:
    expected = case.expected
    return {a: expected[b], b: expected[a]} if a in expected and b in expected else {}


def _times(factor: float, case: Case) -> Results:
    return {name: factor * x for name, x in case.expected.items()}


def _factors(entry: Judged) -> Iterator[float]:
    """Yield the factors of tensors that may be multiples of the expected ones."""
    for name, row in entry.failed().items():
        got, expected = entry.results[name].astype(np.float64), entry.case.expected[row.against]
        size = float((expected * expected).sum())
        if size > 0 and row.max_abs is not None:
            factor = float(f"{(got * expected).sum() / size:.4g}")
            if _equals(row, entry, factor * expected):
                yield factor


# -- patterns ------------------------------------------------------------------------------------

CORRELATED = 0.7  # correlation of a deviation with a tensor above which it is no noise
MAX_TF32, MAX_NOISE, MIN_ENTRIES = 2.0**-10.25, 2.0**-4, 24
"""Median deviation of tensors from TF32, and from any noise, relative to the largest entry. Seen:
2^-11.7 where one factor of the products of the mLSTM's chunks is TF32, 2^-9 where it is bfloat16.
Tensors of fewer entries do not tell noise from a factor."""
CHUNKS = (64, 32, 16, 8)
"""Lengths of chunks; a single position, which programs compute in another way, has none."""


def _length(case: Case) -> int:
    """Return the positions of a case, the second axis of its first result."""
    shape = next(iter(case.expected.values())).shape
    return int(shape[1]) if len(shape) > 1 else 1


def _has_rest(chunk: int, case: Case) -> bool:
    return _length(case) % chunk > 0


def _has_full_and_rest(chunk: int, case: Case) -> bool:
    return _length(case) % chunk > 0 and _length(case) > chunk


def _is_longer(chunk: int, case: Case) -> bool:
    return _length(case) > chunk


LAST, BETWEEN = "a wrong last chunk, of {} positions", "a wrong state between chunks of {}"
COMMON: Sequence[tuple[str, Callable[[Case], bool]]] = (
    *((LAST.format(n), partial(_has_rest, n)) for n in CHUNKS),
    *((LAST.format(n), partial(_has_full_and_rest, n)) for n in CHUNKS),
    *((BETWEEN.format(n), partial(_is_longer, n)) for n in CHUNKS),
    ("document boundaries", lambda case: "reset_mask" in case.inputs),
    ("gradients through the final state", lambda case: any("state." in x for x in case.cotangents)),
    ("an initial state", lambda case: "state" in case.roles.values()),
)
"""What cases may have in common."""


def _pattern(entries: Sequence[Judged], names: set[str]) -> str:
    """Return the kind of fault of tensors that no hypothesis explains; "" if it is unknown."""
    failed = [
        (entry, row) for entry in entries for name, row in entry.failed().items() if name in names
    ]
    if any(row.max_abs is None for _, row in failed):
        return "a missing stabilizer: values overflow or are divided by 0"
    large = [
        (entry, row) for entry, row in failed if entry.results[name_of(row)].size >= MIN_ENTRIES
    ]
    size = float(np.median([row.max_rel or 0.0 for _, row in failed]))
    if large and size < MAX_NOISE and _mostly([_is_noise(*one) for one in large]):
        return "TF32 in matmuls" if size < MAX_TF32 else "bfloat16 in matmuls or sums"
    if all(_length(entry.case) == 1 or name_of(row).startswith(STEPS) for entry, row in failed):
        return "a step, or the state that it hands on"
    told = [entry.case for entry in entries if _length(entry.case) > 1 and _tells(entry.case)]
    bad = {entry.case.name for entry, _ in failed}
    for kind, has in COMMON:
        alike = [case.name in bad for case in told if has(case)]
        others = [case.name in bad for case in told if not has(case)]
        if others and not any(others) and alike and _mostly(alike):
            return kind
    return ""


def _tells(case: Case) -> bool:
    """Whether a case has outputs other than 0."""
    return any(_largest(case.expected[name]) for name in case.checks["forward"])


def _is_noise(entry: Judged, row: ComparedTensor) -> bool:
    """Whether a deviation is spread over a tensor and has nothing to do with its values."""
    got, expected = entry.results[name_of(row)].astype(np.float64), entry.case.expected[row.against]
    off = got - expected
    size = float(np.sqrt((off * off).sum() * (expected * expected).sum()))
    return size > 0 and abs(float((off * expected).sum())) < CORRELATED * size
