"""The reimplementation's Experiment 2: a dense SVM on images, mini-batches of 2 and of 125."""

from __future__ import annotations

from dataclasses import replace

from experiment.classic import (
    Arm,
    curve,
    each,
    interleaved,
    seconds,
    summary,
    with_a_core,
    workers_figure,
)
from experiment.figures import Figure
from experiment.record import Compared, Experiment, Outcome, Scale, run
from experiment.searches import recorded, write_recorded
from harness.claims import Claim, Twin
from harness.estimates import Mean, Ratio

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems import create
from mlxhog.classic.result import ClassicResult
from mlxhog.classic.session import train

BUDGET = {"order": 40, "quick_s": 45, "full_s": 600}
ABOUT = Experiment(
    name="image_svm",
    title="A dense SVM on images, mini-batches of 2 and 125",
    source="document 004, Experiment 2",
    about=(
        "10,000 training and 1,000 test images of 3072 pixels, ten classes one against the rest: "
        "every step touches every one of 30,720 parameters. The document's CIFAR-10 cannot be "
        "shipped; images are generated with pixels as alike as a photograph's and about the same "
        "error of a linear model. Step sizes are searched for each batch size on other images "
        "(--tune) and recorded, as the document did on its validation set."
    ),
)
BATCHES = {2: 20, 125: 100}  # epochs of the document
AGAIN, ANEW = ", again", ", started anew"
LEVEL = 0.03
"""By how much test errors may differ and still be level; the standard error of one is .015."""
Runs = dict[str, list[ClassicResult]]
GRID = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def result(scale: Scale) -> Outcome:
    """Measure Hogwild for each batch size and number of workers."""
    rates = recorded(ABOUT.name)["lr"] if scale.mode != "tiny" else {"2": 0.002, "125": 0.05}
    counts = scale.pick(tiny=(1, 2), quick=(1, 2, 4, 10), full=(1, 2, 4, 8, 10))
    problem = create("image-svm", ClassicConfig(size=scale.pick(tiny=500, quick=None, full=None)))
    repeats = scale.pick(tiny=1, quick=3, full=5)
    table, curves, runs = [], {}, Runs()
    for batch, documented in BATCHES.items():
        epochs = scale.pick(tiny=1, quick=10, full=documented)
        base = ClassicConfig(lr=rates[str(batch)], beta=0.95, epochs=epochs, batch_size=batch)
        arms = [Arm(f"{batch} {count}", replace(base, workers=count)) for count in counts]
        arms.append(Arm(f"{batch} 1{AGAIN}", arms[0].config))
        runs |= interleaved(problem, arms, repeats=repeats)
        for arm in arms[:-1]:
            curves[arm.name] = curve(runs[arm.name][0], "train_error")
            measures = summary(runs[arm.name], "train_loss", "train_error", "test_error")
            table.append({"batch_size": batch, "workers": arm.config.workers, **measures})
    # As the document handed out work: workers started for each epoch, and their start timed.
    epochs = scale.pick(tiny=1, quick=3, full=3)
    base = ClassicConfig(lr=rates["125"], epochs=epochs, batch_size=125, handout="epoch")
    arms = [Arm(f"125 {count}{ANEW}", replace(base, workers=count)) for count in counts]
    runs |= interleaved(problem, arms, repeats=repeats)
    return Outcome(
        compared=_compared(runs, counts),
        table=table,
        claims=[
            Claim.of(
                f"training loss, batch {batch}, {count} workers / 1",
                Ratio.of(
                    each(runs[f"{batch} {count}"], "train_loss"),
                    each(runs[f"{batch} 1"], "train_loss"),
                ),
                "<=",
                1.005,
                timing=False,
            )
            for batch in BATCHES
            for count in counts[1:]
            if scale.mode != "tiny"
        ],
        settings={"lr": rates, "beta": 0.95, "write": "lossless", "images": problem.n_examples},
        results={
            "train_error": curves,
            "epoch_s_started_anew": {
                count: seconds(runs[f"125 {count}{ANEW}"]).median / base.epochs for count in counts
            },
        },
        seeds=tuple(range(repeats)),
        twins=[
            Twin.of(
                f"seconds of one worker, batch {batch}",
                each(runs[f"{batch} 1"]),
                each(runs[f"{batch} 1{AGAIN}"]),
            )
            for batch in BATCHES
        ],
    )


def _compared(runs: Runs, counts: tuple[int, ...]) -> list[Compared]:
    here = with_a_core(counts)

    def faster(batch: int, relation: str, limit: float, how: str = "") -> Claim:
        one, most = (each(runs[f"{batch} {count}{how}"]) for count in (1, here))
        name = f"seconds of 1 worker / {here}, batch {batch}{how}"
        return Claim.of(name, Ratio.of(one, most), relation, limit)

    apart = [
        Claim.of(
            f"test error, batch {batch}, {count} workers less 1",
            Mean.of_differences(
                each(runs[f"{batch} {count}"], "test_error"),
                each(runs[f"{batch} 1"], "test_error"),
            ),
            "within",
            LEVEL,
            least=-LEVEL,
            timing=False,
        )
        for batch in BATCHES
        for count in counts[1:]
    ]
    return [
        Compared.of(
            "With a batch size of 2 Hogwild offers considerable speedup.", faster(2, ">=", 1.5)
        ),
        Compared.of(
            "Hogwild offers little benefit with large batch sizes: more threads are slower at 125.",
            faster(125, "<=", 1.1),
            faster(125, "<=", 1.0, ANEW),
        ),
        Compared.of("The test error is not affected greatly by the number of threads.", *apart),
    ]


def tune() -> None:
    """Find the step size of each batch size with the lowest loss on images of another seed."""
    problem = create("image-svm", ClassicConfig(seed=7))
    best: dict[str, float] = {}
    tried: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        scores = {}
        for lr in GRID:
            config = ClassicConfig(
                lr=lr, beta=0.95, epochs=20, batch_size=batch, scheme="serial", seed=7
            )
            scores[lr] = train(problem, config).measures["test_loss"]
        best[str(batch)] = min(scores, key=lambda lr: scores[lr])
        tried[str(batch)] = {f"{lr:g}": round(score, 4) for lr, score in scores.items()}
    write_recorded(ABOUT.name, {"lr": best, "test_loss": tried, "seed": 7})


def draw(outcome: Outcome) -> Figure:
    """Time and test error by workers, for each batch size, and training error by epoch."""
    names = {batch: f"batch {batch}" for batch in BATCHES}
    figure, times, errors = workers_figure(outcome, "batch_size", names)
    times.set_ylim(bottom=0.0)
    errors.set_ylim(0.0, 1.0)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw, tune=tune))
