"""The entry point of `mlxhog` and `python -m mlxhog`: signals, standard streams, exit code."""

import os
import sys
from contextlib import suppress


def main() -> int:
    """Run the command that the arguments name, and return its exit code."""
    try:
        from mlxhog.base.interrupts import ignore_from_now_on, raise_keyboard_interrupt

        raise_keyboard_interrupt()
        was_open = _open_standard_streams()
        from mlxhog.cli import main as run

        code = run(has_output=was_open)
        ignore_from_now_on()
    except KeyboardInterrupt:  # before the command line handles it, or after it returned
        code = _interrupted()
    except Exception as error:
        # Python 3.11 wraps an interrupt that meets `__set_name__` in an import.
        is_wrapped = isinstance(error.__cause__, KeyboardInterrupt)
        code = _interrupted() if is_wrapped else _fault()
    _leave_a_busy_engine(code)
    return code


def _fault() -> int:
    """Print the traceback of a fault of the program, whose text may quote control characters."""
    import traceback

    from mlxhog.errors import visible

    print(visible(traceback.format_exc()), end="", file=sys.stderr)
    return 1


def _interrupted() -> int:
    """Report the interrupt and return its exit code; further signals are ignored."""
    with suppress(KeyboardInterrupt):
        from mlxhog.base.interrupts import ignore_from_now_on

        ignore_from_now_on()
        from mlxhog.base.output import is_taken

        with suppress(OSError):
            if is_taken(2):  # else this would wait for a terminal that is paused
                os.write(2, b"interrupted\n")
    return 130  # as mlxhog.errors.INTERRUPTED; an import could be interrupted again


def _leave_a_busy_engine(code: int) -> None:
    """End the process here if the thread of `mlxhog serve` did not stop in time.

    Otherwise the interpreter ends that thread on its return from native code, and C++ aborts.
    """
    import threading  # here, since `main` handles signals before any import

    if not any(thread.name == "mlxhog-engine" for thread in threading.enumerate()):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _open_standard_streams() -> bool:
    """Open the null device in place of each closed standard stream; return whether stdout was open.

    Otherwise the next opened file, perhaps the arena, gets the descriptor and a worker's output.
    """
    was_open = True
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor: this one
            os.set_inheritable(null, True)
            setattr(sys, name, open(null, mode, closefd=False))  # noqa: SIM115  stays open
            was_open = was_open and descriptor != 1
    return was_open


if __name__ == "__main__":
    with suppress(OSError):  # the current directory may be gone
        if sys.path[0] == os.getcwd():  # where `-m` looks for modules first; a command does not
            del sys.path[0]
    exit_code = main()
    # CPython marks an interrupt in the `exec` of a text, such as a dataclass that is imported, as
    # unhandled, and `python -m` then ends by SIGINT and not with this code. The next `exec` of a
    # text that ends well takes the mark away.
    exec("")
    sys.exit(exit_code)
