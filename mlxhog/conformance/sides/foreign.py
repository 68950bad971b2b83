"""Sides of a comparison that compute cases of the test vectors: functions over NumPy arrays.

    def mine(case):
        x = case.inputs  # by name, float32; first states and reset masks, too
        h, S = my_kernel(x["q"], x["k"], x["v"], x["log_decay"], **case.options)
        return {"h": h, "state.S": S}

A side gets a `Case` without its expected results, and returns arrays by their names, as many as it
has: "grad.q" is the gradient of the loss by an input, and the loss is the sum of every result times
its `case.cotangents`; "steps.h" is a result from one position at a time. With `NotImplementedError`
it leaves out a case, and says why.

A side "module:function" runs in a process of its own, which may crash or hang; modules are found in
the current directory, too. A function of the caller's is called in this process.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlxhog.arena.child import START_S, Child, Failed, Lane, TimedOut
from mlxhog.base import mapped
from mlxhog.conformance.subject import Array, Results
from mlxhog.conformance.vectors.case import Case
from mlxhog.display.views import TellStep
from mlxhog.errors import ConfigError, did_you_mean, message_of, shown

CellFunction = Callable[..., Mapping[str, Any]]
"""A side: `function(case)`, of a peer `function(case, setting)`."""
Sides = Mapping[str, str | CellFunction] | Sequence[str]
"""Functions, or "module:function", by name; or the texts of --side."""


@dataclass(frozen=True)
class CellSide:
    """An implementation of cells."""

    name: str  # in the report
    function: str | CellFunction  # "module:function", or a function of this process
    setting: str = ""  # second argument of the function; "" for none
    process: str = ""  # sides of one process share it; "": the side has its own
    equations: Sequence[str] | None = None  # that it computes; None: all
    claim: Callable[[Case], Case] | None = None  # the case that it claims to compute
    note: str = ""  # its version, and what it claims


@dataclass(frozen=True)
class SideResults:
    """What a side computed of one case."""

    side: CellSide
    case: Case
    results: Results = field(default_factory=dict)
    left_out: str = ""  # why the side does not compute the case
    failure: str = ""  # what it raised, or that it hung or died


def computed_by_sides(
    sides: Sequence[CellSide], cases: Sequence[Case], limit_s: float, tell: TellStep
) -> Iterator[SideResults]:
    """Compute the cases by every side; one that hangs or dies does not get the next cases.

    Raises:
        ConfigError: a module or a function does not exist.
    """
    children = dict[str, Child]()
    try:
        for side in sides:
            key, function = side.process or side.name, side.function
            if isinstance(function, str):
                child = children[key] = children.get(key) or Child()
                _resolve_in(child, side.name, function)
            for case in cases:
                if side.equations is not None and case.equations not in side.equations:
                    continue
                tell(side.name, case.name)
                case = case if side.claim is None else side.claim(case)
                asked = replace(case, expected={}, tolerances={})
                try:
                    if isinstance(function, str):
                        answer = children[key].call(
                            limit_s, _in_child, function, side.setting, asked
                        )
                    else:
                        answer = _called(function, side.setting, asked)
                except Failed as failure:
                    yield SideResults(side, case, failure=str(failure))
                    if failure.death is not None or isinstance(failure, TimedOut):
                        children.pop(key).close()
                        break
                except Exception as error:  # of the caller's function
                    text = f"{type(error).__name__}: {message_of(error)}"
                    yield SideResults(side, case, failure=text)
                else:
                    yield SideResults(side, case, *answer)
    finally:
        for child in children.values():
            child.close()


def _resolve_in(child: Child, name: str, function: str) -> None:
    try:
        child.call(START_S, _resolve, function, os.getcwd())
    except Failed as failure:
        problem = str(failure).removeprefix("ConfigError: ")
        raise ConfigError(f"--side {name}={function}: {problem}") from failure


def _resolve(lane: Lane, target: str, folder: str) -> None:
    """In a child: import the function."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    lane.keep(target, lambda: function_of(target))


def _in_child(lane: Lane, target: str, setting: str, case: Case) -> tuple[dict[str, Array], str]:
    return _called(lane.store[target], setting, case)


def function_of(target: str) -> CellFunction:
    """Return the function "module:function".

    Raises:
        ConfigError: there is no such module or function.
    """
    name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {name}: {message_of(error)}; name a module of the current directory "
            "or an installed one"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(
            f"{name} has no function {attribute!r}{did_you_mean(attribute, vars(module))}"
        )
    found: CellFunction = function
    return found


def _called(function: CellFunction, setting: str, case: Case) -> tuple[dict[str, Array], str]:
    """Return the results of a function, and why it leaves out the case, if it does."""
    own = replace(case, inputs={name: x.copy() for name, x in case.inputs.items()})
    try:
        results: Any = function(own, *[setting] * bool(setting))
    except NotImplementedError as error:
        return {}, message_of(error)
    if not isinstance(results, Mapping):
        raise TypeError(f"it returned {shown(results)}; return arrays by name, such as {{'h': h}}")
    return {str(name): _array(str(name), x) for name, x in results.items()}, ""


def _array(name: str, x: Any) -> Array:
    """Return a result as an array of NumPy; float64 becomes float32, as which it is judged."""
    with suppress(Exception):  # of the array of another package
        x = np.asarray(x)
    if not isinstance(x, np.ndarray) or not (x.dtype.kind == "f" or x.dtype == mapped.BFLOAT16):
        kind = f"of {x.dtype}" if isinstance(x, np.ndarray) else shown(x)
        raise TypeError(f"{name} is {kind}, expected an array of NumPy, of float32 or narrower")
    return x.astype(np.float32) if x.dtype == np.float64 else x
