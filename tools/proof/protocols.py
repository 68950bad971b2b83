"""Model checking of the locks and the ticket ledger: the real C++ code on weak memory.

    python -m tools.proof.protocols           every scenario, and the needed orders weakened

`search.h` says what is searched and on which model of memory, `scenarios.cpp` what the processes
do. The sources are `arena/ledger.cpp` and `updates/locks.cpp` themselves: `sources` only puts a
name on each of the ledger's atomic calls and makes two of the locks' limits small.

Each acquire and release of `NEEDED` is weakened in turn, and the scenario beside it has to break.
An order that is not there costs nothing on x86-64 and next to nothing on ARM: all control words
share one `load`, `cas` and `add` (`arena/control.h`).
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from mlxhog.errors import EnvironmentLacks, MetalError

_HERE = Path(__file__).parent
_NATIVE = _HERE.parents[1] / "metal" / "native"
_CALL = re.compile(r"\b(load|store|add|cas|raise)\(")
_FUNCTION = re.compile(r"\S.*TicketLedger::(\w+)\(")
_LIMITS = {
    "kSpins = 256;": "kSpins = 1;",
    "kProbeAfterNs = 50000000;": "kProbeAfterNs = 0;",
    "for (;;) {": "proof::loop_head(); for (;;) {",
}

NEEDED = {
    "locks.h exchange swap: acquire": "exclusion",
    "locks.h exchange swap: release": "replacement",
    "locks.h unlock store: release": "exclusion",
    "locks.cpp word load: acquire": "replacement",
    "locks.cpp dead load: acquire": "takeover",
    "locks.cpp generation load: acquire": "replacement",
    "locks.cpp pid load: acquire": "replacement",
    "locks.cpp sweep swap: release": "replacement",
    "workers.py mark_dead: dead = 1 store: release": "takeover",
    "workers.py acquire_slot: generation += 1 store: release": "replacement",
    "workers.py set_process: pid = pid store: release": "replacement",
    "ledger.cpp window load1 load: acquire": "slow claimer",
    "ledger.cpp window load2 load: acquire": "laps",
    "ledger.cpp free_word load1 load: acquire": "slow claimer",
    "ledger.cpp move cas1 swap: release": "checkpoint",
    "ledger.cpp advance fence: all": "laps",
    "ledger.cpp advance load2 load: acquire": "laps",
    "ledger.cpp advance cas1 swap: release": "laps",
    "ledger.cpp claim_returned load1 load: acquire": "give back",
    "ledger.cpp claim cas1 swap: release": "slow claimer",
    "ledger.cpp claim cas2 swap: release": "slow claimer",
    "ledger.cpp give_back add1 add: release": "give back",
    "ledger.cpp return_orphan add1 add: release": "unannounced",
    "ledger.cpp announce_returns add1 add: release": "unannounced",
    "ledger.cpp reap add2 add: release": "death",
    "ledger.cpp state load1 load: acquire": "watcher",
    "ledger.cpp state load2 load: acquire": "watcher",
    "ledger.cpp watermark load1 load: acquire": "watcher",
    "ledger.cpp position load2 load: acquire": "checkpoint",
    "ledger.cpp position load3 load: acquire": "checkpoint",
}
"""File, name and kind of a step, and the half of its order that a scenario misses."""

_SITES = {  # the steps of the locks and the fence, by their code
    "__atomic_compare_exchange_n(&words_[i], &expected, me_": "exchange",
    "__atomic_store_n(&words_[i], 0u": "unlock",
    "word = __atomic_load_n(&words_[i], __ATOMIC_ACQUIRE": "word",
    "__atomic_load_n(&owner.dead": "dead",
    "__atomic_load_n(&owner.generation": "generation",
    "__atomic_load_n(&owner.pid": "pid",
    "__atomic_compare_exchange_n(&words[i], &word, 0u": "sweep",
    "__atomic_thread_fence(": "advance",
}


@dataclass(frozen=True)
class Searched:
    """All runs of a scenario, with the sources as they are or with one order weakened."""

    name: str  # as `NEEDED` calls it
    claim: str  # what should hold
    states: int  # visited
    met: bool  # whether a run has the weakened step
    wrong: str  # the first broken claim and the steps that lead to it; "" where the claim holds
    order: str = ""  # that was weakened, of `NEEDED`; "" for none

    @property
    def problem(self) -> str:
        """What is not as `NEEDED` says; "" where all is well."""
        if not self.order:
            return self.wrong and f"{self.name}: {self.wrong}"
        if not self.met:
            return f"{self.order}: no such step is left"
        return "" if self.wrong else f"{self.order} may be weaker: {self.name} does not miss it"


def sources(folder: Path) -> dict[str, int]:
    """Write the sources to be checked to `folder`; returns the line of each step of `_SITES`."""
    function, counts, named = "", Counter[str](), list[str]()

    def name(call: re.Match[str]) -> str:
        counts[what := call[1]] += 1
        site = f'"ledger.cpp", {len(named) + 1}, "{function} {what}{counts[what]}"'
        return f"PROOF_CALL({site}, {what})("

    ledger = (_NATIVE / "arena" / "ledger.cpp").read_text()
    for line in ledger.splitlines():
        if begins := _FUNCTION.match(line):
            function = begins[1]
            counts.clear()
        code, comment, rest = line.partition("//")
        named.append(_CALL.sub(name, code) + comment + rest)
    small = locks = (_NATIVE / "updates" / "locks.cpp").read_text()
    for real, limit in _LIMITS.items():
        assert locks.count(real) == 1, f"locks.cpp has {real!r} {locks.count(real)} times"
        small = small.replace(real, limit)
    (folder / "ledger.cpp").write_text("\n".join(named) + "\n")
    (folder / "locks.cpp").write_text(small)
    header = (_NATIVE / "updates" / "locks.h").read_text()
    texts = {"ledger.cpp": ledger, "locks.cpp": locks, "locks.h": header}
    steps = {
        f"{file} {site}": number
        for file, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for code, site in _SITES.items()
        if code in line
    }
    assert len(steps) == len(_SITES), f"of {sorted(_SITES.values())} the sources have {steps}"
    return steps


def build(folder: Path) -> Path:
    """Compile the search of the sources in `folder`; returns the program.

    Raises:
        EnvironmentLacks: there is no C++ compiler.
        MetalError: it does not compile; the message holds the compiler's output.
    """
    compiler = which("g++") or which("clang++")
    if compiler is None:
        raise EnvironmentLacks("no g++ or clang++, which the search of the protocols needs")
    files = [*sorted(folder.glob("*.cpp")), *sorted(_HERE.glob("*.cpp"))]
    folders = (_NATIVE, _NATIVE / "arena", _NATIVE / "updates", _HERE)
    options = ["-std=c++20", "-O1", "-include", str(_HERE / "hooks.h")]
    program = folder / "search"
    command = [compiler, *options, *(f"-I{path}" for path in folders), *map(str, files)]
    done = subprocess.run(
        [*command, "-o", str(program)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise MetalError(f"the search of the protocols does not compile:\n{done.stderr}")
    return program


def search(program: Path, steps: Mapping[str, int]) -> Iterator[Searched]:
    """Run the scenarios, then those of `NEEDED` with an order weakened; results as they come.

    Raises:
        MetalError: the program failed.
    """
    asked = ""
    for order, scenario in NEEDED.items():
        place, half = order.rsplit(": ", 1)
        site, kind = place.rsplit(" ", 1)
        file, name = site.split(" ", 1)
        asked += "\t".join((scenario, file, str(steps.get(site, name)), kind, half)) + "\n"
    process = subprocess.Popen(
        [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    orders = iter(NEEDED)
    with process:
        process.stdin.write(asked)
        process.stdin.close()
        for line in process.stdout:
            weakened, name, claim, states, met, wrong = line.rstrip("\n").split("\t")
            order = next(orders) if weakened == "1" else ""
            yield Searched(name, claim, int(states), met == "1", wrong, order)
    if process.returncode:
        raise MetalError(f"the search of the protocols ended with {process.returncode}")


def main() -> int:
    """Print a line per scenario and per weakened order; 1 if one is not as promised."""
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = sources(folder)
        for one in search(build(folder), steps):
            said = f"without {one.order}" if one.order else one.claim
            print(f"{one.states:>10,} states  {one.name}: {said}: {one.wrong or 'holds'}")
            sys.stdout.flush()
            problems += [one.problem] if one.problem else []
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
