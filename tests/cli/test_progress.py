"""Progress of long work: a line now and then in a pipe, nothing when it is short or quiet."""

from __future__ import annotations

import io

from mlxhog.cli.progress import Bytes


def written(*, quiet: bool, seconds: list[float]) -> str:
    clock = iter([0.0, *(t for second in seconds for t in (second, second))])
    stream = io.StringIO()
    with Bytes(stream, quiet=quiet, clock=lambda: next(clock)) as tell:
        for k in range(len(seconds)):
            tell(f"tensor {k}", (k + 1) * 10**8, 10**9)
    return stream.getvalue()


def test_a_pipe_gets_a_line_every_few_seconds() -> None:
    assert written(quiet=False, seconds=[6.0]) == "10%  100 MB of 1.0 GB  tensor 0\n"


def test_short_or_quiet_work_leaves_no_line() -> None:
    assert written(quiet=False, seconds=[1.0]) == ""
    assert written(quiet=True, seconds=[100.0]) == ""
