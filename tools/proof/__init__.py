"""Model checking of what kernels promise: every interleaving of a few threads, searched by spin.

    python -m tools.proof        a line per proof; exit code 1 if one is not as promised

`packed16_add.pml` is the packed 16-bit add, with its source explained line by line. A proof of a
model with a planted fault must fail, or the model would be too weak to show anything.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from mlxhog.errors import EnvironmentLacks, MetalError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A claim about a model, and whether it should hold.

    Attributes:
        claim: what holds of every run, in words.
        model: file of this folder.
        options: defined for the model.
        endless: the claim is that no run is endless; otherwise that no assertion fails and no
            thread is stuck.
        holds: False for a planted fault, which the search must find.
    """

    claim: str
    model: str = "packed16_add.pml"
    options: tuple[str, ...] = ()
    endless: bool = False
    holds: bool = True


@dataclass(frozen=True)
class Verdict:
    """What a search found, and how many different states it visited.

    Attributes:
        holds: no run breaks the claim.
        counterexample: spin's words for the run that does, "" where there is none.
        states: visited; where the claim does not hold, until the first such run.
    """

    holds: bool
    counterexample: str
    states: int


PROOFS = (
    Proof(claim="3 adders, 3 tries: nothing is lost"),
    Proof(claim="3 adders, 2 tries: every adder ends", options=("TRIES=2",), endless=True),
    Proof(
        claim="2 adders, 64 tries as in the source: nothing is lost",
        options=("ADDERS=2", "TRIES=64"),
    ),
    Proof(
        claim="2 adders, 16 tries: every adder ends",
        options=("ADDERS=2", "TRIES=16"),
        endless=True,
    ),
    Proof(claim="no spurious failures: every add arrives, also beside NaN", options=("STRONG",)),
    Proof(
        claim="no spurious failures and no limit on tries: every adder ends",
        options=("STRONG", "UNBOUNDED"),
        endless=True,
    ),
    Proof(
        claim="planted: a plain store instead of an exchange loses nothing",
        options=("LOAD_AND_STORE",),
        holds=False,
    ),
    Proof(
        claim="planted: without a limit every adder ends, whatever fails spuriously",
        options=("UNBOUNDED",),
        endless=True,
        holds=False,
    ),
    Proof(
        claim="planted: without a limit every adder ends, compared as floats",
        options=("STRONG", "UNBOUNDED", "COMPARE_AS_FLOAT"),
        endless=True,
        holds=False,
    ),
    Proof(
        claim="planted: every add arrives beside NaN, compared as floats",
        options=("STRONG", "COMPARE_AS_FLOAT"),
        holds=False,
    ),
)


def verify(proof: Proof) -> Verdict:
    """Search all runs of a model; a second or a few, and up to two thirds of a gigabyte.

    Raises:
        EnvironmentLacks: spin or a C compiler is not installed.
        MetalError: the model or the search does not work; the message holds their output.
    """
    for tool in ("spin", "gcc"):
        if not which(tool):
            raise EnvironmentLacks(
                f"no {tool}, which the proof of {proof.model} needs; apt-get install spin gcc"
            )
    with tempfile.TemporaryDirectory() as folder:
        model = str(_FOLDER / proof.model)
        _run(folder, "spin", *(f"-D{option}" for option in proof.options), "-a", model)
        _run(folder, "gcc", "-O1", _mode(proof), "-o", "search", "pan.c")
        depth = ("-m1000000", "-b")  # -b: too deep a run is an error, not a gap in the search
        said = _run(folder, "./search", *depth, *(("-l",) if proof.endless else ()))
    errors = re.search(r"errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    if errors is None or states is None or "Search not completed" in said and errors[1] == "0":
        raise MetalError(f"the search of {proof.model} did not finish:\n{said}")
    broken = re.search(r"^pan:1: (.*?) \(at depth", said, re.MULTILINE)
    return Verdict(errors[1] == "0", broken[1] if broken else "", int(states[1]))


def _mode(proof: Proof) -> str:
    return "-DNP" if proof.endless else "-DSAFETY"


def _run(folder: str, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MetalError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
