"""Model checking of the locks and the ticket ledger: the real C++ code on weak memory.

    python -m tools.proof.protocols           every scenario, and the needed orders weakened

`search.h` says what is searched and on which model of memory, `scenarios.cpp` what the processes
do, `main.cpp` which orders are weakened. The sources are `arena/ledger.cpp` and
`updates/locks.cpp` themselves: `sources` only puts a name on each of the ledger's atomic calls and
makes two of the locks' limits small.

Each acquire and release of `NEEDED` is weakened in turn, and the scenario beside it has to break.
An order that is not there costs nothing on x86-64 and next to nothing on ARM: all control words
share one `load`, `cas` and `add` (`arena/control.h`).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from mlxhog.errors import EnvironmentLacks, MetalError

_HERE = Path(__file__).parent
_NATIVE = _HERE.parents[2] / "metal" / "native"
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
    "workers.py seated: pid = pid store: release": "replacement",
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
    """A scenario, and what is wrong with it: "" where its claim holds in every run.

    Attributes:
        name: as `NEEDED` calls it.
        claim: what should hold.
        states: visited.
        wrong: the first broken claim.
        run: the steps that lead to it.
    """

    name: str
    claim: str
    states: int
    wrong: str
    run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weakened:
    """One order made weaker, and the scenario that breaks: "" where none does.

    Attributes:
        order: the file, the step and what was taken from it.
        by: the scenario's name.
        wrong: the claim that it breaks.
    """

    order: str
    by: str
    wrong: str


def sources(folder: Path) -> dict[tuple[str, int], str]:
    """Write the sources to be checked to `folder`; returns the name of each step by its line.

    Raises:
        MetalError: a source no longer has what is named here.
    """
    function, named, counts = "", [], dict[str, int]()

    def name(call: re.Match[str]) -> str:
        counts[call[1]] = counts.get(call[1], 0) + 1
        return (
            f'PROOF_CALL("ledger.cpp", {number}, "{function} {call[1]}{counts[call[1]]}", '
            f"{call[1]})("
        )

    ledger = (_NATIVE / "arena" / "ledger.cpp").read_text()
    number = 0
    for line in ledger.splitlines():
        number += 1
        if begins := _FUNCTION.match(line):
            function, counts = begins[1], {}
        code, comment, rest = line.partition("//")
        named.append(_CALL.sub(name, code) + comment + rest)
    locks = (_NATIVE / "updates" / "locks.cpp").read_text()
    for real, small in _LIMITS.items():
        if locks.count(real) != 1:
            raise MetalError(f"locks.cpp has {real!r} {locks.count(real)} times, wanted once")
        locks = locks.replace(real, small)
    (folder / "ledger.cpp").write_text("\n".join(named) + "\n")
    (folder / "locks.cpp").write_text(locks)
    texts = {
        "ledger.cpp": ledger,
        "locks.cpp": locks,
        "locks.h": (_NATIVE / "updates" / "locks.h").read_text(),
    }
    steps = {
        (file, number): site
        for file, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for code, site in _SITES.items()
        if code in line
    }
    if len(steps) != len(_SITES):
        raise MetalError(f"of the steps {sorted(_SITES.values())}, the sources have {steps}")
    return steps


def build(folder: Path) -> Path:
    """Compile the search; returns the program.

    Raises:
        EnvironmentLacks: there is no C++ compiler.
        MetalError: it does not compile; the message holds the compiler's output.
    """
    compiler = which("g++") or which("clang++")
    if compiler is None:
        raise EnvironmentLacks("no g++ or clang++, which the search of the protocols needs")
    files = [
        folder / "ledger.cpp",
        folder / "locks.cpp",
        _HERE / "search.cpp",
        _HERE / "scenarios.cpp",
        _HERE / "main.cpp",
    ]
    include = [_NATIVE, _NATIVE / "arena", _NATIVE / "updates", _HERE]
    options = [
        "-std=c++20",
        "-O1",
        "-include",
        str(_HERE / "hooks.h"),
        *(f"-I{p}" for p in include),
    ]
    started = [
        subprocess.Popen(
            [compiler, *options, "-c", str(file), "-o", str(folder / f"{file.stem}.o")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for file in files
    ]
    messages = [process.communicate()[1] for process in started]
    program = folder / "search"
    if not any(process.returncode for process in started):
        objects = [str(folder / f"{file.stem}.o") for file in files]
        linked = subprocess.run(
            [compiler, *objects, "-o", str(program)], capture_output=True, text=True, check=False
        )
        if linked.returncode == 0:
            return program
        messages.append(linked.stderr)
    raise MetalError("the search of the protocols does not compile:\n" + "".join(messages))


def search(program: Path, steps: dict[tuple[str, int], str]) -> Iterator[Searched | Weakened]:
    """Run the scenarios, then each with one order weakened; results as they come.

    Args:
        program: from `build`.
        steps: from `sources`.

    Raises:
        MetalError: the program failed.
    """
    lines = {f"{file} {site}": f"{file}\t{number}" for (file, number), site in steps.items()}
    hints = ""
    for order, by in NEEDED.items():
        place, half = order.rsplit(": ", 1)
        site, kind = place.rsplit(" ", 1)
        file, text = site.split(" ", 1)
        hints += f"{lines.get(site, f'{file}{chr(9)}{text}')} {kind}\t{half}\t{by}\n"
    process = subprocess.Popen(
        [str(program), "table"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(hints)
        process.stdin.close()
        for line in process.stdout:
            what, *fields = line.rstrip("\n").split("\t")
            if what == "scenario":
                yield Searched(fields[0], fields[1], int(fields[2]), fields[3])
            elif what == "weakened":
                file, step, half, by, wrong = fields
                site, kind = step.rsplit(" ", 1)
                if site.isdigit():
                    site = steps[file, int(site)]
                yield Weakened(f"{file} {site} {kind}: {half}", by, wrong)
    if process.returncode:
        raise MetalError(f"the search of the protocols ended with {process.returncode}")


def problems(results: list[Searched | Weakened]) -> list[str]:
    """What is not as `NEEDED` says, in words; empty where all is well."""
    lines = [
        f"{one.name}: {one.wrong}" for one in results if isinstance(one, Searched) and one.wrong
    ]
    weakened = {one.order: one.by for one in results if isinstance(one, Weakened)}
    for order, by in NEEDED.items():
        if order not in weakened:
            lines.append(f"{order}: no such step is left")
        elif not weakened[order]:
            lines.append(f"{order} may be weaker: {by} does not miss it")
    return lines
