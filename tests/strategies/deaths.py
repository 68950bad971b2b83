"""Deaths at any line of a strategy: a trace function that raises where SIGKILL would strike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

from mlxhog.data.ledger import Ledger


class Died(BaseException):
    """Stands for SIGKILL: nothing behind the line where it is raised runs."""


def _code(strategy: type, name: str) -> CodeType:
    """Of a method, or of a function beside the class."""
    beside = vars(sys.modules[strategy.__module__])
    found: CodeType = (getattr(strategy, name, None) or beside[name]).__code__
    return found


def lines(strategy: type, methods: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Every line of some methods and functions, as (its name, number within it)."""
    for method in methods:
        code = _code(strategy, method)
        first = code.co_firstlineno
        numbers = {line - first for _, _, line in code.co_lines() if line and line > first}
        yield from ((method, number) for number in sorted(numbers))


def dies_at(strategy: type, method: str, number: int) -> Any:
    """A trace function that raises where a line of a method is about to run."""
    code = _code(strategy, method)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not code:
            return trace if frame.f_code.co_filename == code.co_filename else None
        if event == "line" and frame.f_lineno - code.co_firstlineno == number:
            sys.settrace(None)
            raise Died
        return trace

    return trace


def die_and_be_replaced(
    victim: Any,
    line: tuple[str, int],
    make: Callable[[], Any],
    run: Callable[[Any], object],
    *,
    on_torn: str = "count",
) -> bool:
    """Run a worker that dies once, and then the one that replaces it.

    Args:
        victim: made, like the run's other workers, before any of them runs.
        line: where it dies, of `lines`.
        make: makes its successor in the same slot.
        run: does all that is left to do.
        on_torn: what becomes of a torn ticket.

    Returns:
        Whether the line was reached.
    """
    context, arena = victim.context, victim.context.arena
    sys.settrace(dies_at(type(victim), *line))
    try:
        run(victim)
    except Died:
        pass
    else:
        return False
    finally:
        sys.settrace(None)
    arena.workers.mark_dead(context.slot)
    Ledger(arena, on_torn=on_torn).reap(context.owner)
    run(make())
    return True
