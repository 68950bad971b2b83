"""Tolerances: how far two sides may differ, and why.

A tensor may differ from its exact value by the sum of

1. the effect of rounding the inputs: `roundings` times its condition, how far the reference moves
   when every input is rounded once more; or, if that is more, the share `of_largest` of the largest
   entry of the expected tensor;
2. the effect of rounding on terms that cancel at any input, such as the gradient of a gate that the
   normalizer divides out: the share `of_all` of the largest entry of all tensors of this kind.
   Between our own CPU backends a gradient is allowed less where its noise says so;
3. the rounding of the result itself: `LAST_PLACES` times the spacing of float32 at its largest
   entry; for a parameter after some steps, one more for each step;
4. for a parameter after some steps, the effect of 2. in its gradients on the steps
   (`optimizers.AMPLIFICATION`);
5. `atol`;
6. in mixed precision, of the loss and of gradients: `BF16` times the noise of the roundings to
   bfloat16, how far they move the reference; and through them of a parameter after some steps, as
   4.

Two float32 sides may each be off by that. If no condition is known, only the table counts.

Conditions: a denominator that nearly cancels enlarges the rounding errors of every program, and
steps of an optimizer enlarge them again: in a model with 8 layers, one rounding of the parameters
moved the third gradient by 1 % of it. So the reference computes everything again, steps included,
from parameters that are off by 1, 16 and 32 half units in the last place of float32, the larger
amounts in two opposite directions: near a point where a function is not smooth (relu and selu at 0,
a maximum whose arguments change places) an entry may have either gradient, and a single rounding
would not show that. One selu in 200 random models was 3e-7 from 0, and moved its gradient by 2 %.

Noise: the reference computes loss and gradients again at three inputs, with each intermediate
result rounded to float32, or with the roundings of mixed precision (`models/ops/mixed.py`); the
largest movement of an entry is the noise. Errors of the CPU backends in 100 random models were up
to 7 times the float32 noise of a gradient, or up to 0.2 roundings of the largest gradient if the
reference's terms cancel exactly. Without the noise a wrong sign passed in one of 200 models: its
entry was 1/40,000 of the largest gradient, and `of_all` alone allowed 28 times the error of any
backend. In mixed precision errors were up to 2.4 times the noise of one input.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from mlxhog.backends.probes import ALLOWED, CHAIN, GATES, PRODUCTS
from mlxhog.conformance.subject import Array, Results, parameter_after


@dataclass(frozen=True)
class Tolerance:
    """Terms of the allowed difference, as above."""

    reason: str
    atol: float = 0.0
    of_largest: float = 0.0
    of_all: float = 0.0
    roundings: float = 64.0
    """Roundings of every input that the error may equal. Seen: 20, between logits step by step and
    over the whole sequence (architecture tiny with seed 2, off by 2.9e-4)."""


LAST_PLACES = 2

FLOAT32 = {
    "hidden": Tolerance("float32 rounding of sums over the width", atol=1e-5, of_largest=2e-5),
    "logits": Tolerance(
        "transformers and xlstm differ from their own float64 by up to 2.3e-5 on logits of order 4",
        atol=1e-4,
    ),
    "loss": Tolerance("float32 rounding of a mean of order 4", atol=1e-5),
    "state": Tolerance(
        "C and n carry the scale exp(-m), so only their size relative to the largest counts",
        **asdict(ALLOWED["state"]),
    ),
    "grad": Tolerance(
        "reordering chunks alone moves xlstm's float32 gradients by 1.4e-4 of a tensor's largest "
        "entry, and a stabilizer held constant by 1e-5; tensors behind a closed gate are noise of "
        "the others",
        **asdict(ALLOWED["grad"]),
    ),
    "after": Tolerance(
        "relative to the movement, with gradients within their own tolerance; AdamW divides by "
        "them, softened by its eps; and float32 rounding of the parameter itself",
        atol=2e-6,
        of_largest=1e-2,
    ),
    "step": Tolerance("units of the parameter's rounding per step, optimizers.py"),
    **{
        kind: Tolerance("float32 rounding, backends/probes.py", **asdict(ALLOWED[kind]))
        for kind in (PRODUCTS, GATES, CHAIN)
    },
}

MEASURED = FLOAT32 | {
    "grad": Tolerance(
        "64 times its movement under one rounding of the parameters; the xlstm package's "
        "stabilizer held constant (1e-5 of the largest entry); and 64 roundings of the largest "
        "gradient, for terms that cancel behind the normalizer at any parameters (seen: 32)",
        of_largest=3e-5,
        of_all=64 * 2.0**-24,
    ),
    "after": Tolerance(
        "256 times its movement under one rounding of the parameters: every step enlarges that "
        "by its own factor, of which three tries give a rough idea (seen: 52); and the rounding "
        "of the parameter at every step. `step` compares the optimizer alone",
        of_largest=1e-4,
        of_all=2e-6,
        roundings=256.0,
    ),
}
"""In place of `FLOAT32` if the condition is known."""

FLOAT64 = Tolerance("two float64 programs", atol=1e-9, of_largest=1e-9)
FLOAT64_GRAD = Tolerance("two float64 programs", atol=1e-11, of_largest=1e-8)

STEP = 2.0
"""Error of one step of an optimizer, in units of the parameter's rounding: it rounds the parameter
once or twice, half a unit each, and the step itself. Seen: 0.9."""
PLUGIN_STEP = 16.0
"""The same for an optimizer of a plugin, which may enlarge rounding errors of its state. Seen: 10,
with `half=1e-6` in examples/my_optimizer.py."""


def allowed(
    kind: str, condition: float | None, noise: float | None, largest: float, of_all: float
) -> tuple[Tolerance, float]:
    """Return the row of a kind, and terms 1, 2 and 5 of the allowed difference in float32.

    The condition of a tensor is its movement under one rounding of the inputs, as a share of its
    `largest` entry (of a parameter after some steps, its largest movement), None if unknown, as the
    noise of a gradient may be; `of_all` is the largest entry of all tensors of the kind.
    """
    row = (FLOAT32 if condition is None else MEASURED)[kind]
    share, shared = max(row.of_largest, row.roundings * (condition or 0.0)), row.of_all * of_all
    if condition is not None and noise is not None:
        shared = min(shared, max(NOISE * noise, MIN_OF_ALL * of_all))
    return row, share * largest + shared + row.atol


ROUNDING = 2.0**-24
AMOUNTS = (1, 16, -16, 32, -32)
NOISE_AMOUNTS = (0, 1, 16)
NOISE = 16.0  # allowed error of a gradient in units of its noise; seen: 7
MIN_OF_ALL = 4.0 * ROUNDING  # allowed error as a share of the largest gradient; seen: 0.2
NOISE_PREFIX, BF16_PREFIX = "noise/", "bfloat16/"
BF16 = 8.0  # allowed error of a loss or gradient in units of its noise in mixed precision
_OTHER_NAMES = ("", "grad/")
"""Prefixes of the condition of a result that has none of its own: that over the whole sequence, or,
for a parameter after some steps, of its gradient."""


def rounded(inputs: Mapping[str, Array], amount: int) -> dict[str, Array]:
    """Return the inputs off by up to `amount` half units in the last place, in float64.

    `-amount` moves them in the opposite direction.
    """
    rng = np.random.default_rng(abs(amount))
    return {
        name: value * (1.0 + amount * ROUNDING * rng.uniform(-1.0, 1.0, value.shape))
        for name, value in inputs.items()
    }


def measure(
    exact: Results,
    inputs: Results,
    compute: Callable[[Results], Iterable[tuple[str, Array]]],
    roundings: Mapping[str, Callable[[Results], Results]],
) -> dict[str, float]:
    """Return the condition of each result, and the noise of the loss and of each gradient.

    `compute` computes all or some of the exact results from other inputs, `roundings` the loss and
    the gradients with the roundings whose noise gets a prefix.
    """
    known: dict[str, float] = {}
    for amount in (0, *AMOUNTS):
        moved, grads = rounded(inputs, amount), dict[str, Array]()
        for name, value in compute(moved) if amount else exact.items():
            if name == "loss" or name.startswith("grad/"):
                grads[name] = value
            size, difference = exact[name], value - exact[name]
            if (parameter := parameter_after(name)) is not None:
                size = exact[name] - inputs[parameter]
                difference = (value - moved[parameter]) - size
            largest, off = (float(np.abs(x).max(initial=0.0)) for x in (size, difference))
            if amount:
                share = off / abs(amount) / largest if largest > 0 else 0.0
                known[name] = max(known.get(name, 0.0), share)
        for prefix, rounding in roundings.items() if amount in NOISE_AMOUNTS else ():
            near = rounding(moved)
            for name, grad in grads.items():
                off = float(np.abs(near[name] - grad).max(initial=0.0))
                off = off if np.isfinite(off) else math.inf  # a result is beyond float32
                known[prefix + name] = max(known.get(prefix + name, 0.0), off)
    return known


def mixed_noise(name: str, conditions: Mapping[str, float]) -> float:
    """Return term 6 of a loss or gradient; 0 of other results, and in float32."""
    return BF16 * conditions.get(BF16_PREFIX + name, 0.0)


def condition_of(name: str, conditions: Mapping[str, float]) -> float | None:
    """Return the condition of a result, or of a related one (`_OTHER_NAMES`); None if unknown."""
    parameter = parameter_after(name)
    rest = name.partition("/")[2] if parameter is None else parameter
    for candidate in (name, *(before + rest for before in _OTHER_NAMES)):
        if candidate in conditions:
            return conditions[candidate]
    return None
