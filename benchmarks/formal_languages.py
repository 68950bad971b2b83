"""Does it learn what it should? Parity, which needs memory mixing, by stacks with and without it.

    python benchmarks/formal_languages.py            the official recipe, 20,000 steps
    python benchmarks/formal_languages.py --quick    4,000 steps of a faster one: at most 15 minutes

Three stacks of two blocks are trained on strings of 3 to 40 characters and asked for those of 40 to
256 (`_parity.py`). The sLSTM's units see each other's past, so it can count modulo two at any
length; the mLSTM's gates do not. A stack is done as soon as it answers 99 % of the long strings.
Each runs in a process of its own with one thread; as many at once as there are cores.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from typing import Any

from _harness import Claim, LoadWatch, cores, finish, own_cpu_s
from _parity import LONG_SIZES, STACKS, TRAIN_SIZES, Learner, Recipe, grid, scaled, stack

from mlxhog.machine.processes import thread_limits

SOLVED = 0.99  # of the long strings
NEAR_CHANCE = 0.25  # scaled accuracy that no stack without memory mixing may exceed
LOOK_EVERY = 200  # steps between two validations
QUICK_S = 780.0  # from the start to the last step of all
MEMORY_MIXING = tuple(name for name, slstm_at in STACKS.items() if slstm_at)


def main() -> int:
    """Train the three, print their accuracy by length, and say whether all is as it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="Recipe.quick(), cut off after 13 minutes"
    )
    parser.add_argument("--backend", default="torch:cpu", choices=("torch:cpu", "mlx:cpu"))
    parser.add_argument("--steps", type=int, help="of the schedule, 20,000 by default, quick 4,000")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    recipe = Recipe.quick() if chosen.quick else Recipe()
    if chosen.steps:
        recipe = replace(
            recipe, steps=chosen.steps, warmup=recipe.warmup * chosen.steps // recipe.steps
        )
    deadline = time.time() + QUICK_S if chosen.quick else None
    watch, cpu = LoadWatch(), own_cpu_s()
    with (
        thread_limits(1),
        ProcessPoolExecutor(len(cores()), mp_context=get_context("spawn")) as pool,
    ):
        waiting = {
            name: pool.submit(train, name, recipe, chosen.backend, deadline, chosen.seed)
            for name in STACKS
        }
        found = {name: future.result() for name, future in waiting.items()}
    sizes = list(next(iter(found.values()))["accuracy"])
    print("\naccuracy by length (scaled: 0 is chance)")
    print(" " * 18 + "".join(f"{size:>6}" for size in sizes))
    for name, result in found.items():
        print(f"  {name:16}" + "".join(f"{a:6.2f}" for a in result["accuracy"].values()))
        print(
            f"  {'scaled':>16}" + "".join(f"{scaled(a):6.2f}" for a in result["accuracy"].values())
        )
    claims = [
        Claim(f"{name}: accuracy on strings of 40 to 256", found[name]["long"], ">=", SOLVED, False)
        for name in MEMORY_MIXING
    ]
    longest = max(found[name]["steps"] for name in MEMORY_MIXING)
    for name in STACKS.keys() - set(MEMORY_MIXING):
        result = found[name]
        what = f"{name}: scaled accuracy on strings of 40 to 256"
        claims.append(Claim(what, scaled(result["long"]), "<=", NEAR_CHANCE, timing=False))
        what = f"{name}: steps that it was given"
        claims.append(Claim(what, result["steps"], ">=", longest, timing=False))
    return finish(
        "formal_languages",
        claims,
        others_load=watch.stop(own_cpu_s() - cpu),
        results={
            "seed": chosen.seed,
            "backend": chosen.backend,
            "recipe": asdict(recipe),
            "stacks": found,
        },
        packages=("mlxhog", "torch", "mlx", "numpy"),
    )


def train(
    name: str, recipe: Recipe, backend: str, deadline: float | None, seed: int
) -> dict[str, Any]:
    """Train one stack until it is solved or given up.

    Args:
        name: of `STACKS`.
        recipe: how.
        backend: what computes.
        deadline: of `time.time()`, which is the same in every process.
        seed: of initial values and strings.

    Returns:
        `steps`, `seconds`, `long` (mean accuracy over the long sizes), `accuracy` by size, and
        `curve`: step, loss and long accuracy at every look.
    """
    learner = Learner(stack(STACKS[name]), recipe, backend=backend, seed=seed)
    began = time.monotonic()
    curve: list[dict[str, float]] = []
    long, loss = 0.0, float("nan")
    while learner.steps < recipe.steps and long < SOLVED:
        loss = learner.step()
        late = deadline is not None and time.time() >= deadline
        if learner.steps % LOOK_EVERY and not late and learner.steps < recipe.steps:
            continue
        long = mean_accuracy(learner, LONG_SIZES)
        curve.append({"step": learner.steps, "loss": loss, "long": long})
        print(
            f"{name:16} step {learner.steps:6} loss {loss:.4f} long strings {long:.3f}", flush=True
        )
        if late:
            break
    sizes = [*grid(TRAIN_SIZES, 4)[:-1].tolist(), *grid(LONG_SIZES, 7).tolist()]
    return {
        "steps": learner.steps,
        "seconds": round(time.monotonic() - began, 1),
        "long": long,
        "accuracy": {size: learner.accuracy(size, 128) for size in sizes},
        "curve": curve,
    }


def mean_accuracy(learner: Learner, sizes: tuple[int, int]) -> float:
    """Accuracy over sizes drawn evenly from a range."""
    points = grid(sizes, 10).tolist()
    return sum(learner.accuracy(size) for size in points) / len(points)


if __name__ == "__main__":
    raise SystemExit(main())
