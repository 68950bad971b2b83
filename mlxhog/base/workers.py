"""Resolve `--workers`: the backends of a run, and the threads of each worker.

auto                    as many as suit this machine
4                       four workers of the kinds that suit this machine
mlx:gpu,torch:cpu*3     exactly these
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mlxhog.base.machine import Machine
from mlxhog.errors import ConfigError, EnvironmentLacks, did_you_mean

if TYPE_CHECKING:
    from mlxhog.base.capabilities import Capability

BACKENDS = ("mlx:gpu", "mlx:cpu", "torch:mps", "torch:cpu")
BACKEND_NAMES = ("auto", "torch", "mlx", *BACKENDS)
"""Names of one backend; the device of `auto` and of a framework depends on the machine."""
GPU_BACKENDS = ("mlx:gpu", "torch:mps")  # the two engines of an Apple GPU

# M chips by suffix: (GPU workers, MLX CPU workers). First guesses, which leave two performance
# cores to feed the GPU and to apply its updates. Other chips, such as the A18 Pro of a MacBook
# Neo, have the mix of a plain M chip.
APPLE_MIX = {"": (1, 1), "Pro": (1, 2), "Max": (1, 2), "Ultra": (2, 4)}
FED_BY = 2  # cores that CPU workers leave to each GPU worker, to feed it and apply its updates
_M_CHIP = re.compile(r"Apple M\d+ (Pro|Max|Ultra)")

# On Linux more workers mean more staleness, and then a dense model needs more steps; a first guess.
MAX_AUTO_WORKERS = 4

# A CPU worker slower than this share of the fastest kind costs the others memory bandwidth and
# staleness, for next to no updates.
WORTH_RUNNING = 0.05

MAX_WORKERS = 4096  # slots that an arena can have


@dataclass(frozen=True)
class WorkerSpec:
    """A worker to start: its backend and number of CPU threads."""

    backend: str
    threads: int


class WorkerChoice(NamedTuple):
    """Workers of a run, and notes for the user."""

    workers: tuple[WorkerSpec, ...]
    notes: tuple[str, ...] = ()


def resolve_workers(
    workers: str,
    threads: int | None = None,
    *,
    machine: Machine,
    max_workers: int | None = None,
    serial: bool = False,
    tokens_per_s: Mapping[str, float] | None = None,
    pair: Capability | None = None,
) -> WorkerChoice:
    """Return the workers of the option on this machine.

    Args:
        workers: `auto`, a number, or a list of backends.
        threads: threads of each worker, at most those on a GPU; None shares the cores, at least one
            each.
        machine: where they will run.
        max_workers: slots in the arena; None means one per worker.
        serial: the strategy runs one worker; `auto` then means one with every core.
        tokens_per_s: speed of one worker by backend, where `mlxhog doctor` has measured it; `auto`
            leaves out CPU workers that are not worth running.
        pair: whether torch:mps beside mlx:gpu trains faster than mlx:gpu alone, by `mlxhog
            doctor`; `auto` then takes both. None leaves torch:mps out.

    Raises:
        ConfigError: the option cannot be read, has too many workers, or more threads than cores.
        EnvironmentLacks: a requested backend is not available, or Rosetta translates this process.
    """
    if machine.translated:
        raise EnvironmentLacks(
            "this Python is an Intel program that Rosetta translates: it has no Metal, no MLX and "
            "pages of another size; install an arm64 Python (check: `file $(which python3)`) and "
            "mlxhog in it"
        )
    notes: list[str] = []
    if workers.strip() == "auto":
        backends = _auto(machine, 1 if serial else None, notes, None if serial else pair)
        backends = _worth_running(backends, tokens_per_s or {}, notes)
    else:
        backends = _listed(workers.strip(), machine, notes)
    count = len(backends)
    if serial and count > 1:
        raise ConfigError(
            f"strategy serial runs 1 worker, and so does sim; workers asks for {count}; "
            "leave workers out, or use strategy hogwild or sync"
        )
    if max_workers is not None and count > max_workers:
        raise ConfigError(
            f"workers asks for {count}, the arena has {max_workers} slots; raise max_workers, or "
            "leave it out"
        )
    return WorkerChoice(_with_threads(backends, threads, machine, notes), tuple(notes))


def joining_workers(
    workers: str, threads: int | None, *, machine: Machine, present: int, free: int
) -> tuple[WorkerSpec, ...]:
    """Return the workers that join a run of `present` workers with `free` free slots.

    As in `resolve_workers`; but `auto` is one worker, and `threads` None shares the cores with the
    present workers.

    Raises:
        ConfigError: as `resolve_workers`, or more workers than free slots.
        EnvironmentLacks: a requested backend is not available.
    """
    backends = _listed("1" if workers.strip() == "auto" else workers.strip(), machine, [])
    if (count := len(backends)) > free:
        slots = f"{free} free slot{'s' * (free != 1)} beside its {present} workers"
        raise ConfigError(
            f"{count} worker{'s' * (count > 1)} cannot join: the run has {slots}; let "
            "others leave (mlxhog stop RUN --worker N), or start a run with more --max-workers"
        )
    share = threads or max(1, machine.cores // (present + count))
    return _with_threads(backends, share, machine, [])


def _listed(text: str, machine: Machine, notes: list[str]) -> list[str]:
    is_number = re.fullmatch(r"[+-]?\d{1,9}", text) is not None
    counts = [("", int(text))] if is_number else []
    for part in () if is_number else text.split(","):
        name, star, times = (piece.strip() for piece in part.partition("*"))
        if name not in BACKENDS:
            raise ConfigError(
                f"workers: no backend {name!r}; wanted auto, a number, or some of "
                f"{', '.join(BACKENDS)} (as in mlx:gpu,torch:cpu*3){did_you_mean(name, BACKENDS)}"
            )
        if star and not (times.isdecimal() and int(times) > 0):
            raise ConfigError(f"workers: {part.strip()!r} needs a number of workers after the star")
        counts.append((name, int(times) if star else 1))
    total = sum(count for _, count in counts)
    if not 1 <= total <= MAX_WORKERS:
        raise ConfigError(
            f"workers asks for {total}; wanted at least 1, and an arena has at most {MAX_WORKERS} "
            "slots"
        )
    if is_number:
        return _auto(machine, total, notes)
    if lacks := [no for no in (missing(name, machine) for name in dict(counts)) if no]:
        raise EnvironmentLacks("; ".join(lacks))
    return [name for name, count in counts for _ in range(count)]


def backend_here(name: str, machine: Machine) -> str:
    """Return the backend of a framework's name on this machine; other names stay.

    "mlx" is the GPU if there is one, else the CPU. "torch" is the CPU, which is faster than MPS for
    models as small as MAD candidates.
    """
    on_gpu = name == "mlx" and machine.apple_gpu
    return f"{name}:{'gpu' if on_gpu else 'cpu'}" if name in ("mlx", "torch") else name


def one_backend(word: str, machine: Machine) -> str:
    """Return the backend of one of `BACKEND_NAMES` here; ConfigError for another name."""
    if word not in BACKEND_NAMES:
        raise ConfigError(
            f"no backend {word!r}; choose from {', '.join(BACKEND_NAMES)}"
            f"{did_you_mean(word, BACKEND_NAMES)}"
        )
    if word == "auto":
        has_mlx, has_torch = (name in machine.frameworks for name in ("mlx", "torch"))
        word = "mlx" if has_mlx and (machine.apple_gpu or not has_torch) else "torch"
    return backend_here(word, machine)


def missing(backend: str, machine: Machine) -> str | None:
    """Return what a backend lacks on this machine and how to get it; None if it can run."""
    framework = backend.partition(":")[0]
    if backend in GPU_BACKENDS and not machine.apple_gpu:
        return (
            f"{backend} needs macOS on Apple silicon, this is {machine.name}; "
            f"use {framework}:cpu here"
        )
    if framework not in machine.frameworks:
        package = "'mlx[cpu]'" if framework == "mlx" and machine.system == "linux" else framework
        return f"{backend} needs {framework}: python -m pip install {package}"
    return None


def _auto(
    machine: Machine, count: int | None, notes: list[str], pair: Capability | None = None
) -> list[str]:
    """Return `count` backends for this machine, or as many as suit it, and note replacements."""
    lacks = {name: missing(name, machine) for name in BACKENDS}
    both = False
    if pair is not None and machine.cores > 1 and not any(lacks[name] for name in GPU_BACKENDS):
        both = pair.ok
        words = "torch:mps beside mlx:gpu" if both else "mlx:gpu without torch:mps"
        notes.append(f"workers auto: {words}: {pair.reason}")
    names = _apple(machine, count, both) if machine.apple_gpu else _linux(machine, count)
    able = [name for name in names if lacks[name] is None]
    able = able or [name for name in ("mlx:cpu", "torch:cpu") if lacks[name] is None]
    if not able:
        raise EnvironmentLacks("no worker can run here: " + "; ".join(filter(None, lacks.values())))
    notes += [no for name in dict.fromkeys(names) if (no := lacks[name]) is not None]
    return [name if lacks[name] is None else able[i % len(able)] for i, name in enumerate(names)]


def _worth_running(
    backends: list[str], tokens_per_s: Mapping[str, float], notes: list[str]
) -> list[str]:
    """Leave out CPU workers measured as far slower than the fastest kind of the run."""
    fastest = max((tokens_per_s.get(name, 0.0) for name in backends), default=0.0)
    shares = {name: tokens_per_s.get(name, fastest) / (fastest or 1.0) for name in backends}
    slow = {name for name in backends if fastest and shares[name] < WORTH_RUNNING} - {*GPU_BACKENDS}
    notes += [
        f"{name} left out: {shares[name]:.1%} of the fastest worker's speed when `mlxhog doctor` "
        "measured it"
        for name in dict.fromkeys(backends)
        if name in slow
    ]
    return [name for name in backends if name not in slow]


def _apple(machine: Machine, count: int | None, both: bool) -> list[str]:
    larger = _M_CHIP.fullmatch(machine.chip)
    gpu, cpu = APPLE_MIX[larger[1] if larger else ""]
    if count is None:  # no more workers than cores
        on_gpu = ["mlx:gpu"] * min(gpu, machine.cores - both) + ["torch:mps"] * both
        return on_gpu + ["mlx:cpu"] * min(cpu, machine.cores - len(on_gpu))
    return ["mlx:gpu"] * min(gpu, count) + ["mlx:cpu"] * max(0, count - gpu)


def _linux(machine: Machine, count: int | None) -> list[str]:
    count = min(machine.cores, MAX_AUTO_WORKERS) if count is None else count
    if count == 1 or count < machine.cores:  # several threads each, of which torch makes more use
        return ["torch:cpu"] * count
    return [("mlx:cpu", "torch:cpu")[i % 2] for i in range(count)]


def _with_threads(
    backends: list[str], threads: int | None, machine: Machine, notes: list[str]
) -> tuple[WorkerSpec, ...]:
    """Share the cores: CPU workers leave two to each GPU worker, if possible, split the rest."""
    on_gpu = sum(backend in GPU_BACKENDS for backend in backends)
    on_cpu = len(backends) - on_gpu
    if threads is not None:
        n_cores = on_gpu + on_cpu * threads
        if n_cores > machine.cores and threads > 1:
            raise ConfigError(
                f"threads is {threads}, so {len(backends)} workers need {n_cores} cores and this "
                f"machine has {machine.cores}; use fewer workers, or threads=auto"
            )
        share, rest = threads, 0
    else:
        left = max(on_gpu, min(FED_BY * on_gpu, machine.cores - on_cpu))
        share, rest = divmod(max(machine.cores - left, 0), max(on_cpu, 1))
    if len(backends) > machine.cores:
        notes.append(
            f"{len(backends)} workers share {machine.cores} cores; more workers than cores "
            "add staleness, not speed"
        )
    own = max(1, (machine.cores - on_cpu * share - rest) // max(on_gpu, 1))
    shares = iter([share + 1] * rest + [max(1, share)] * on_cpu)
    return tuple(
        WorkerSpec(one, min(own, threads or own) if one in GPU_BACKENDS else next(shares))
        for one in backends
    )
