"""The answer and the table of a classic run."""

from dataclasses import replace

from mlxhog.classic.result import ClassicResult, Epoch, sections, warnings
from tests.pairs import each_of


def run(objective, seconds, *, scheme="hogwild", workers=2):
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
    ("result", "serial", "answer"),
    [
        (run(1.0, 1.0), SERIAL, "hogwild racy, 2 workers: serial's objective, 2.00 x its speed"),
        (
            run(1.1, 4.0),
            SERIAL,
            "hogwild racy, 2 workers: objective +10.00% from serial's, 0.50 x its speed",
        ),
        (run(1.1, 1.0), None, "hogwild racy, 2 workers: objective 1.1 after 1 epochs"),
        (
            replace(run(1.1, 1.0), status="interrupted"),
            None,
            "hogwild racy, 2 workers: objective 1.1 interrupted after 1 epochs",
        ),
        (
            replace(run(1e9, 1.0), status="diverged"),
            SERIAL,
            "hogwild racy, 2 workers: diverged in epoch 1",
        ),
    ],
)
def test_the_first_line_is_the_answer(result, serial, answer):
    first, numbers = sections("data", result, serial, [], everything=False)
    assert str(first.notes[0]) == answer
    assert ("lost updates", "5 of 1,000") == (numbers.rows[-1][0], numbers.rows[-1][-1])


@each_of(
    ("result", "load", "cores", "message"),
    [
        (run(20.0, 1.0), 0.1, 4, "The objective rose from 10: the step size is too large; try"),
        (run(1.0, 4.0), 5.0, 2, "not meaningful: 2 workers, and a load of 5.0 before, on 2 cores."),
        (
            run(1.0, 4.0, workers=3),
            0.0,
            1,
            "not meaningful: 3 workers, and a load of 0.0 before, on 1 core.",
        ),
    ],
)
def test_what_spoils_the_numbers_is_said(result, load, cores, message):
    assert message in "\n".join(warnings(result, load, cores))
    assert not list(warnings(run(1.0, 1.0), 0.1, 4))
