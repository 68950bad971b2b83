"""The answer and the table of a classic run."""

from dataclasses import replace

from mlxhog.classic.result import ClassicResult, Epoch, sections, warnings
from tests.pairs import each_of


def run(objective, seconds, *, scheme="hogwild", workers=2, status="done"):
    epoch = Epoch(1, 0.1, seconds, seconds * workers, 1000, {"objective": objective})
    return ClassicResult(
        problem="svm", scheme=scheme, write="racy", workers=workers, status=status, start_s=0.1,
        initial={"objective": 10.0}, epochs=(epoch,), lost_updates=5, probe_updates=1000,
    )  # fmt: skip


SERIAL = run(1.0, 2.0, scheme="serial", workers=1)


@each_of(
    ("result", "serial", "answer"),
    [
        (run(1.0, 1.0), SERIAL, "serial's objective, 2.00 x its speed"),
        (run(1.1, 4.0), SERIAL, "objective +10.00% from serial's, 0.50 x its speed"),
        (run(1.1, 1.0), None, "objective 1.1 after 1 epochs"),
        (run(1.1, 1.0, status="interrupted"), None, "objective 1.1 interrupted after 1 epochs"),
        (run(1e9, 1.0, status="diverged"), SERIAL, "diverged in epoch 1"),
    ],
)
def test_the_first_line_is_the_answer(result, serial, answer):
    first, numbers = sections("data", result, serial, [], everything=False)
    assert str(first.notes[0]) == f"hogwild racy, 2 workers: {answer}"
    assert ("lost updates", "5 of 1,000") == (numbers.rows[-1][0], numbers.rows[-1][-1])


def test_what_spoils_the_numbers_is_said():
    (rose,) = warnings(run(20.0, 1.0), 0.1, 4)
    assert rose.startswith("The objective rose from 10: the step size is too large; try")
    (busy,) = warnings(run(1.0, 4.0), 5.0, 2)
    assert busy.endswith("not meaningful: 2 workers, and a load of 5.0 before, on 2 cores.")
    (few,) = warnings(replace(run(1.0, 4.0), workers=3), 0.0, 1)
    assert few.endswith("3 workers, and a load of 0.0 before, on 1 core.")
    assert not list(warnings(run(1.0, 1.0), 0.1, 4))
