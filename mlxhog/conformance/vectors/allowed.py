"""Tolerances of the results of a case, in each dtype, and why.

They are for a program that keeps inputs and results in that dtype, and sums, gates and states in
float32. A result may differ from the exact one, in any entry, by the sum of

1. the effect of rounding the inputs to float32: `INPUTS` times the movement of the result when
   every input moves by up to half a place of float32. Programs that sum in another order, or take a
   decay as the difference of two sums, have errors of this size;
2. the effect of rounding intermediate results to float32: `INTERMEDIATE` times the deviation of
   the same equations in float32, which counts where terms cancel; of a gradient at least
   `CANCELLED` half places of the largest entry of all gradients, since terms that cancel there by
   luck need not cancel in a program;
3. in bfloat16 and float16, the effect of rounding factors of products, as kernels for matrix units
   do: `FACTORS` times the movement of the result when the inputs that such a program may round
   (`Tensor.rounds`) move by up to half a place of the dtype; of a gradient at least
   `NARROW_CANCELLED` half places of the largest entry of all (seen: 0.95 of them, of a forget gate
   that acts on nothing);
4. of a state with a stabilizer m, the rounding of m, by which it is scaled: relative to the result
   `STABILIZED` half places of float32 at the largest m or gate. In the reference m is often a gate
   itself, without a rounding, and moves with it;
5. the rounding of the result itself: one place of its dtype at its largest entry, two of float32;
6. the smallest normal number of the dtype, with a margin, since a program may flush denormals.

The movement is the largest one of any entry, over several draws of the roundings. In float32 the
sum is about 1e-5 of the largest entry, far below the effect of TF32 or of sums in bfloat16. Seen in
our eager and native operators, over random cases: 0.34 of the tolerance in float32; in mixed
precision 0.9, of the bias of a gate, whose terms cancel.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mlxhog.conformance.vectors.case import Array, ResultTolerance
from mlxhog.conformance.vectors.equations import Equations

HALF_PLACE = {"float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-12}
LEAST = {"float32": 2.0**-100, "bfloat16": 2.0**-100, "float16": 2.0**-23}

INPUTS, INTERMEDIATE, FACTORS = 64.0, 16.0, 16.0
CANCELLED, NARROW_CANCELLED, STABILIZED = 4.0, 1.0, 4.0
AMOUNTS = (1.0, 16.0, -16.0)  # movements of inputs, in half places of float32
FACTOR_AMOUNTS = (1.0, 8.0, -8.0)  # of factors, in those of float16: 8 is one of bfloat16
MAX_FLOAT16 = 2.0**15


def tolerances(
    equations: Equations,
    inputs: Mapping[str, Array],
    cotangents: Mapping[str, Array],
    expected: Mapping[str, Array],
    dtypes: Sequence[str],
) -> dict[str, dict[str, ResultTolerance]]:
    """Return how far each result may be from the expected one, by dtype.

    A dtype without the range of the results has none.
    """
    own = {one.name: one for one in equations.tensors}

    def movement(names: Sequence[str], place: float, amounts: Sequence[float]) -> dict[str, float]:
        """Return the largest movement of each result for one half place of these inputs."""
        largest = dict.fromkeys(expected, 0.0)
        for amount in amounts:
            rng = np.random.default_rng(abs(int(amount)))
            moved = {
                name: x * (1.0 + amount * place * rng.uniform(-1.0, 1.0, x.shape))
                if name in names
                else x
                for name, x in inputs.items()
            }
            for name, off in deviations(equations.results(moved, cotangents), expected).items():
                largest[name] = max(largest[name], off / abs(amount))
        return largest

    floats = [name for name, x in inputs.items() if x.dtype == np.float32]
    factors = [name for name in floats if own[name].rounds]
    by_inputs = movement(floats, HALF_PLACE["float32"], AMOUNTS)
    by_factors = movement(factors, HALF_PLACE["float16"], FACTOR_AMOUNTS)
    rounded = equations.results(inputs, cotangents, rounded=True)
    noise = deviations(rounded, expected)
    sizes = {name: float(np.abs(x).max(initial=0.0)) for name, x in expected.items()}
    largest = max((size for name, size in sizes.items() if name.startswith("grad.")), default=0.0)
    gates = [name for name in floats if not own[name].rounds]
    gate_size = max((float(np.abs(inputs[name]).max(initial=0.0)) for name in gates), default=0.0)
    allowed = dict[str, dict[str, ResultTolerance]]()
    for dtype in dtypes:
        if dtype == "float16" and max(sizes.values()) > MAX_FLOAT16:
            continue
        place, is_narrow = HALF_PLACE[dtype], dtype != "float32"
        allowed[dtype] = {}
        for name, size in sizes.items():
            of_all = largest if name.startswith("grad.") else 0.0
            in_float32 = name in own and not own[name].rounds  # a state
            places = 2 * place if is_narrow and not in_float32 else 4 * HALF_PLACE["float32"]
            m = sizes.get(f"{name.rpartition('.')[0]}.m") if name.startswith("state.") else None
            exponent = 0.0 if m is None else max(m, gate_size)
            factors_moved = FACTORS * by_factors[name] * place / HALF_PLACE["float16"]
            terms = {
                "inputs": INPUTS * by_inputs[name],
                "sums": max(INTERMEDIATE * noise[name], CANCELLED * HALF_PLACE["float32"] * of_all),
                "factors": is_narrow * max(factors_moved, NARROW_CANCELLED * place * of_all),
                "stabilizer": STABILIZED * HALF_PLACE["float32"] * exponent * size,
                "result": places * size,
            }
            why = " + ".join(f"{x:.1e} {what}" for what, x in terms.items() if x)
            allowed[dtype][name] = ResultTolerance(
                float(f"{sum(terms.values()) + LEAST[dtype]:.3g}"), why or "exact"
            )
    return allowed


def deviations(results: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest deviation of each result."""
    return {name: float(np.abs(results[name] - x).max(initial=0.0)) for name, x in expected.items()}
