"""What the numbers of a classic run are said to mean."""

from __future__ import annotations

from dataclasses import replace

from mlxhog.classic.result import ClassicResult, Epoch, explain
from tests.pairs import each_of

QUIET = {"load": 0.1, "cores": 4}


def run(
    objective: float, seconds: float, *, scheme: str = "hogwild", workers: int = 2
) -> ClassicResult:
    epoch = Epoch(1, 0.1, seconds, seconds * workers, 1000, {"objective": objective})
    return ClassicResult(
        problem="svm",
        scheme=scheme,
        write="racy",
        workers=workers,
        status="done",
        start_s=0.1,
        initial={"objective": 10.0},
        epochs=(epoch,),
        lost_updates=5,
        probe_updates=1000,
    )


SERIAL = run(1.0, 2.0, scheme="serial", workers=1)


@each_of(
    ("result", "message"),
    [
        (run(1.0, 1.0), "The objective equals serial's to the last digit."),
        (
            run(1.001, 1.0),
            "The objective is close to serial's, 0.10% above it",
        ),
        (run(0.9, 1.0), "The objective is 10.0% below serial's after equal epochs."),
        (run(1.1, 1.0), "10.0% above serial's after equal epochs: with 2 workers each step"),
        (run(1.1, 1.0, scheme="sync"), "one step is the mean of 2 gradients"),
        (run(1.0, 1.0), "2 workers do 2.00 x the examples per second of serial."),
        (run(1.0, 4.0), "2 workers do 0.50 x the examples per second of serial: waiting and"),
        (run(1.0, 1.0), "Lost updates: 0.50% of the increments of a counter"),
        (replace(run(1.0, 1.0), lost_updates=0), "None of the 1,000 counted updates was lost."),
        (run(20.0, 1.0), "The objective rose from 10: the step size is too large; try --lr 0.01."),
    ],
)
def test_the_numbers_are_put_into_words(result, message):
    assert message in "\n".join(explain(result, SERIAL, **QUIET))


def test_a_busy_machine_is_said_to_be_busy_and_blamed_for_nothing():
    text = "\n".join(explain(run(1.0, 4.0), SERIAL, load=5.0, cores=2))
    assert "Busy machine (load 5.0 on 2 cores)" in text
    assert "costs more" not in text


def test_more_workers_than_cores_can_show_no_speedup():
    text = "\n".join(explain(run(1.0, 4.0, workers=3), SERIAL, load=0.0, cores=1))
    assert "3 workers share 1 core, so no speedup is possible." in text


def test_without_a_reference_nothing_is_compared():
    assert "serial" not in "\n".join(explain(run(1.0, 1.0), None, **QUIET))
