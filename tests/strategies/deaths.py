"""Deaths at any line of a strategy: a trace function that raises where SIGKILL would strike."""

import sys
import threading
import time
from functools import partial
from operator import attrgetter
from pathlib import Path

from mlxhog import strategies
from mlxhog.arena.ledger import Ledger

STRATEGIES = str(Path(strategies.__file__).parent)


def let_others_run():
    """Wait as a worker does that has nothing to do; a loop without it keeps the others waiting."""
    time.sleep(0.0002)


class Died(BaseException):
    """Stands for SIGKILL: nothing behind the line where it is raised runs."""


def _code(strategy, name):
    """Of a method, of a function beside the class, or of `module.function` or `module.Class.f`."""
    module, _, rest = name.partition(".")
    if rest:
        result = attrgetter(rest)(sys.modules[f"{strategies.__name__}.{module}"])
    else:
        result = getattr(strategy, name, None) or vars(sys.modules[strategy.__module__])[name]
    code = result.__code__
    return code


def lines(strategy, methods):
    """Every line of some methods and functions, as (its name, number within it)."""
    for method in methods:
        code = _code(strategy, method)
        first = code.co_firstlineno
        numbers = {line - first for _, _, line in code.co_lines() if line and line > first}
        yield from ((method, number) for number in sorted(numbers))


def dies_at(strategy, method, number, *, times=1):
    """A trace function that raises where a line of a method is about to run for the n-th time."""
    code = _code(strategy, method)
    left = times

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code is not code:
            return trace if frame.f_code.co_filename == code.co_filename else None
        if event == "line" and frame.f_lineno - code.co_firstlineno == number:
            left -= 1
            if not left:
                sys.settrace(None)
                raise Died
        return trace

    return trace


def dies_with(others):
    """A trace function that raises at the next line of a strategy once others have died."""

    def trace(frame, event, argument):
        if STRATEGIES not in frame.f_code.co_filename:
            return None
        if event == "line" and others.is_set():
            sys.settrace(None)
            raise Died
        return trace

    return trace


def die_together(victim, other, strategy, line, *, times, reap=lambda: None):
    """Run two workers in threads; one dies at a line, and the other wherever it is then.

    Args:
        victim: works until it dies.
        other: works beside it.
        strategy: of the victim.
        line: where it dies, of `lines`.
        times: how often the line is reached first.
        reap: called when the victim is dead, for an other that waits for a lock that it held.

    Returns:
        Whether the line was reached so often; else both have run to their end.
    """
    dead = threading.Event()

    def run(work, trace):
        sys.settrace(trace)
        try:
            work()
        except Died:
            dead.set()
            if work is victim:
                reap()
        finally:
            sys.settrace(None)

    traces = (dies_at(strategy, *line, times=times), dies_with(dead))
    threads = [
        threading.Thread(target=run, args=pair, daemon=True)
        for pair in zip((victim, other), traces, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), f"no worker ended after a death at {line}"
    return dead.is_set()


def after(event, run, worker):
    """Run a worker once another has begun, which else would find no work left."""
    assert event.wait(30)
    run(worker)


def die_and_be_replaced(victim, line, make, run, *, of=None):
    """Run a worker that dies once, and then the one that replaces it.

    Args:
        victim: made, like the run's other workers, before any of them runs.
        line: where it dies, of `lines`.
        make: makes its successor in the same slot.
        run: does all that is left to do.
        of: the class whose line it is; None is the worker's own.

    Returns:
        Whether the line was reached.
    """
    context, arena = victim.context, victim.context.arena
    sys.settrace(dies_at(of or type(victim), *line))
    try:
        run(victim)
    except Died:
        pass
    else:
        return False
    finally:
        sys.settrace(None)
    arena.workers.mark_dead(context.slot)
    Ledger(arena).reap(context.owner)
    run(make())
    return True


def dies_beside_another(make, line, run):
    """One of two workers dies and is replaced, while the other continues and ends.

    Args:
        make: makes the worker of a slot.
        line: where the one in slot 1 dies, of `lines`.
        run: does all that is left to do.

    Returns:
        Whether the line was reached, and the other worker.
    """
    victim, other = make(1), make(2)
    begun = threading.Event()
    thread = threading.Thread(target=after, args=(begun, run, other), daemon=True)
    thread.start()

    def begin(worker):
        begun.set()
        run(worker)

    reached = die_and_be_replaced(victim, line, partial(make, 1), begin)
    thread.join(30)
    assert not thread.is_alive(), f"the other worker is stuck after a death at {line}"
    return reached, other
