"""A check of every function and class of `mlxhog._native`: only NumPy's arrays may reach them.

Nanobind asks an array for `__dlpack__` before the buffer protocol, and takes memory of the CPU
alone; which memory an array of a framework names depends on the machine. The first call of each
function in each process is written to the file that FAKE_NATIVE_LOG names, one name per line.
"""

import functools
import os

import numpy as np

REFUSED = "refused: "  # before the name of a function that was called with such an array


def install(native):
    """Replace what the extension module and its submodule offer by checked forms."""
    log = os.open(os.environ["FAKE_NATIVE_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(line):
        os.write(log, f"{line}\n".encode())

    for module in (native, native.ops):
        for name, value in list(vars(module).items()):
            full_name = f"ops.{name}" if module is native.ops else name
            if isinstance(value, type):
                setattr(module, name, _checked_class(full_name, value, note))
            elif callable(value) and not name.startswith("__"):
                setattr(module, name, _checked(full_name, value, note))


def _checked(name, function, note):
    called = False

    @functools.wraps(function)
    def call(*arguments, **keywords):
        nonlocal called
        if not called:
            called = True
            note(name)
        for foreign in _foreign((*arguments, *keywords.values())):
            note(REFUSED + name)
            raise TypeError(f"mlxhog._native.{name} got {type(foreign)}, expected NumPy's arrays")
        return function(*arguments, **keywords)

    return call


def _checked_class(name, kind, note):
    members = {
        member: _checked(f"{name}.{member}", value, note)
        for member, value in vars(kind).items()
        if callable(value) and (member == "__init__" or not member.startswith("__"))
    }
    return type(kind)(kind.__name__, (kind,), members)


def _foreign(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from _foreign(value)
        elif hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
            yield value
