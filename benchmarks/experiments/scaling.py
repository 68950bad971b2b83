"""Serial against lock-free workers: time to a loss here, and a prediction for a larger machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median
from typing import Any

from experiment.figures import INKS, Figure, curves, legend, new_panels
from experiment.language import Bench, Training, enough_cores, setup, trainings_json, workers
from experiment.record import UNTOLD, Compared, Experiment, Outcome, Scale, run, told
from harness.claims import Claim, Sample
from harness.interleaved import take_turns
from harness.machine import cores
from staleness import BEST as LOOKING_AHEAD
from training.recording import count_parameters, model_file

from mlxhog.theory.simulator import Prediction, schemes, simulate, time_to_loss
from mlxhog.theory.simulator.times import Constant
from mlxhog.theory.simulator.workers import Worker

BUDGET = {"order": 70, "quick_s": 60, "full_s": 14400}
ABOUT = Experiment(
    name="scaling",
    title="Serial against Hogwild with 1 to 16 workers",
    source="document 001, Test 1",
    about=(
        "One serial worker and 2 or more lock-free ones (each with one thread), Muon with its "
        "defaults, which are shared moments and looking ahead, train the same xLSTM on the same "
        "text; the time counts until the lowest held-out loss that all of them reach. What a "
        "larger machine would do is predicted by an event-driven simulator from the costs of a "
        "step that were measured here, and from what staleness costs by the experiment staleness."
    ),
    packages=("torch",),
)
TIE = 0.02  # bits per byte by which final losses may differ and still be called identical
PREDICTION = "M2 Ultra of the document: 24 cores, 800 GB/s"
MAC_CORES, MAC_BYTES_PER_S = 24, 800e9
COUNTS = (1, 2, 4, 8, 16, 24)
# Memory traffic of a step, in bytes per parameter: a copy reads and writes 4; a gradient reads the
# parameters about three times and is written once; a step reads w, g, m, u and writes w, m and both
# recorded u.
READ_BYTES, COMPUTE_BYTES, APPLY_BYTES = 8, 16, 32
MUON = {"optimizer": "muon", "schedule": "cosine"}
TOKENS = 300_000
SIMULATED = 3000  # updates of a prediction
WITHIN = 0.15  # relative error of the simulator for two workers here


def settings(scale: Scale) -> dict[str, Any]:
    """Worker counts and the amount of text."""
    counts = scale.pick(tiny=(1, 2), quick=(1, 2), full=(1, 2, 4, 8, 16))
    return {"workers": counts, "tokens": scale.pick(tiny=12_000, quick=TOKENS, full=4 * TOKENS)}


def result(scale: Scale) -> Outcome:
    """Train with every number of workers, then predict."""
    chosen, bench = settings(scale), Bench(setup(scale, wide=True))

    def train(n: int, seed: int) -> Training:
        return bench.train(
            "serial" if n == 1 else f"hogwild, {n} workers",
            seed=seed,
            tokens=chosen["tokens"],
            workers=workers(n),
            strategy="serial" if n == 1 else "hogwild",
            **MUON,
        )

    trainings = take_turns(scale.seeds, chosen["workers"], train)
    rows = _rows(trainings, len(scale.seeds))
    n_params = count_parameters(model_file(**bench.setup.sizes))
    per_step = bench.setup.batch * bench.setup.seq_len
    predicted = _predict(trainings, rows, n_params, per_step, _penalties(scale))
    error = predicted["two workers here"]["relative_error"]
    return Outcome(
        compared=_compared(rows, predicted),
        table=[*rows, *predicted["rows"]],
        claims=[
            Claim("simulator's throughput of 2 workers here, relative error", error, "<=", WITHIN),
            Claim(
                "lost updates",
                max(one.lost_update_rate for v in trainings.values() for one in v),
                "==",
                0,
                timing=False,
            ),
        ],
        settings={**bench.setup.to_json(), **MUON, **chosen, "parameters": n_params},
        results={"prediction": predicted, "trainings": trainings_json(trainings)},
    )


def _rows(trainings: Mapping[int, list[Training]], seeds: int) -> list[dict[str, Any]]:
    """One row per number of workers; times are to a loss that all of a seed's trainings reach."""
    targets = [max(min(v[k].bits) for v in trainings.values()) for k in range(seeds)]

    def ratio(n: int) -> list[float]:
        return [
            trainings[1][k].seconds_to(targets[k]) / max(1e-9, trainings[n][k].seconds_to(target))
            for k, target in enumerate(targets)
        ]

    return [
        {
            "workers": n,
            "kind": "measured" if enough_cores(n) else f"measured on {len(cores())} cores",
            "tokens per second": round(median(one.tokens_per_s for one in own)),
            "staleness": round(median(one.staleness for one in own), 2),
            "bits per byte": median(one.end for one in own),
            "seconds to the loss": median(
                one.seconds_to(t) for one, t in zip(own, targets, strict=True)
            ),
            "gradients to the loss": median(
                one.steps_to(t) for one, t in zip(own, targets, strict=True)
            ),
            "speedup": Sample.of(ratio(n)).median,
        }
        for n, own in trainings.items()
    ]


def _penalties(scale: Scale) -> dict[float, float]:
    """Steps to a loss by staleness, as multiples of serial's, if that experiment has been run."""
    path = scale.out / "staleness.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    if not document or document["mode"] != scale.mode:
        return {}
    rows = [row for row in document["table"] if row.get("rule") == LOOKING_AHEAD]
    costs = {row["staleness"]: row["times the gradients of serial"] for row in rows}
    return {0.0: 1.0, **costs} if costs else {}


def _predict(
    trainings: Mapping[int, list[Training]],
    rows: list[dict[str, Any]],
    n_params: int,
    per_step: int,
    penalties: dict[float, float],
) -> dict[str, Any]:
    """The simulator's answers for the costs of a serial step."""
    costs = {
        part: median(one.costs_s[part] for one in trainings[1])
        for part in ("read", "compute", "apply")
    }
    worker = Worker(
        name="torch:cpu",
        compute=Constant(costs["compute"]),
        read_s=costs["read"],
        apply_s=costs["apply"],
        read_bytes=READ_BYTES * n_params,
        compute_bytes=COMPUTE_BYTES * n_params,
        apply_bytes=APPLY_BYTES * n_params,
    )
    serial, two = rows[0], rows[1]
    here = simulate([worker] * 2, schemes.Hogwild(), updates=SIMULATED, cores=len(cores()))
    measured = two["tokens per second"] / per_step
    updates_at = {0.0: serial["gradients to the loss"]} | (
        {tau: ratio * serial["gradients to the loss"] for tau, ratio in penalties.items() if tau}
        or {max(0.01, two["staleness"]): two["gradients to the loss"]}
    )
    mac = {
        n: simulate(
            [worker] * n,
            schemes.Hogwild(),
            updates=SIMULATED,
            cores=MAC_CORES,
            bandwidth=MAC_BYTES_PER_S,
        )
        for n in COUNTS
    }
    times = {n: time_to_loss(prediction, updates_at) for n, prediction in mac.items()}
    return {
        "name": PREDICTION,
        "assumptions": [
            "every core of that machine is as fast as one here",
            f"a step moves {READ_BYTES}, {COMPUTE_BYTES} and {APPLY_BYTES} bytes per parameter "
            "while reading, computing and applying (counted, not measured)",
            "every step takes the same time; no core is slower than another",
            "step sizes are tuned for each staleness, as they were where it was measured; beyond 3 "
            "every unit of staleness costs what it does between 1 and 3",
        ],
        "inputs": {
            "costs_s": costs,
            "parameters": n_params,
            "updates_to_loss": {f"{tau:g}": updates for tau, updates in updates_at.items()},
            "staleness_from": "experiment staleness" if penalties else "the two workers here",
        },
        "two workers here": {
            "predicted_gradients_per_s": here.gradients_per_s,
            "measured_gradients_per_s": measured,
            "relative_error": abs(here.gradients_per_s / measured - 1),
        },
        "rows": [_predicted_row(n, mac[n], mac[1], times, serial) for n in COUNTS],
        "simulations": {f"{n}": prediction.to_json() for n, prediction in mac.items()},
    }


def _predicted_row(
    n: int,
    prediction: Prediction,
    one: Prediction,
    times: Mapping[int, Any],
    serial: dict[str, Any],
) -> dict[str, Any]:
    throughput = prediction.gradients_per_s / one.gradients_per_s
    return {
        "workers": n,
        "kind": "PREDICTED, 24-core Mac" + (", extrapolated" if times[n].extrapolated else ""),
        "tokens per second": round(throughput * serial["tokens per second"]),
        "staleness": round(prediction.staleness.mean, 2),
        "bits per byte": None,
        "seconds to the loss": times[n].seconds,
        "gradients to the loss": times[n].updates,
        "speedup": times[1].seconds / times[n].seconds,
    }


def _compared(rows: list[dict[str, Any]], predicted: dict[str, Any]) -> list[Compared]:
    most = max((row for row in rows if enough_cores(row["workers"])), key=lambda r: r["workers"])
    sixteen = next(row for row in predicted["rows"] if row["workers"] == 16)
    throughput = sixteen["tokens per second"] / predicted["rows"][0]["tokens per second"]
    apart = max(abs(row["bits per byte"] - rows[0]["bits per byte"]) for row in rows)
    text = (
        f"{most['workers']} workers reach the loss {most['speedup']:.2f} times as soon as one, at "
        f"{most['tokens per second'] / rows[0]['tokens per second']:.2f} times its throughput."
    )
    if enough_cores(16):
        speedup = next(row for row in rows if row["workers"] == 16)["speedup"]
        verdict = told(speedup >= 8)
        text += f" 16 workers: {speedup:.1f}."
    else:
        verdict = UNTOLD
        text += (
            f" This machine has {len(cores())} cores. Prediction for {predicted['name']}: 16 "
            f"workers {throughput:.1f} times the throughput, {sixteen['speedup']:.1f} times as soon"
            + (" (staleness extrapolated)." if "extrapolated" in sixteen["kind"] else ".")
        )
    return [
        Compared("8-10x speedup with 16 workers", text, verdict),
        Compared(
            "final loss identical to serial",
            f"after the same text, losses differ by up to {apart:.3f} bits per byte (serial "
            f"{rows[0]['bits per byte']:.3f}).",
            told(apart <= TIE),
            timing=False,
        ),
    ]


def draw(outcome: Outcome) -> Figure:
    """Loss against time, and speedup against workers."""
    figure, (left, right) = new_panels(
        ("seconds", "held-out bits per byte", "Loss against time, measured"),
        ("workers", "times as soon as serial", "Time to a loss"),
    )
    firsts = {
        "serial" if n == "1" else f"{n} workers": (own[0]["seconds"], own[0]["bits_per_byte"])
        for n, own in outcome.results["trainings"].items()
    }
    curves(left, firsts)
    left.legend(frameon=False, fontsize=7)
    for ink, style, kind in ((INKS[0], "o-", "measured"), (INKS[1], "s--", "PREDICTED")):
        rows = [row for row in outcome.table if row["kind"].startswith(kind)]
        label = kind.lower() if kind == "measured" else "predicted, 24-core Mac"
        right.plot(
            [row["workers"] for row in rows],
            [row["speedup"] for row in rows],
            style,
            color=ink,
            label=label,
        )
    right.axhspan(8, 10, xmin=0.6, color=INKS[4], alpha=0.25, label="the document, 16 workers")
    legend(right)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
