"""The capability record of this machine, written by `mlxhog doctor`, and what it permits.

    ~/Library/Caches/mlxhog/doctor-<chip>-<system>-<mlx>.json         macOS
    $XDG_CACHE_HOME/mlxhog/doctor-<chip>-<system>-<mlx>.json          Linux

A record belongs to one identity: machine and versions. One of another identity and a damaged one
count as absent, with a reason. Times of cells are in a file `cells-...` beside it, since a worker
adds those that it measures.
"""

from __future__ import annotations

import math
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib import metadata
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any, NamedTuple

from mlxhog.base import darwin, machine, plain_json
from mlxhog.base.cache import is_kept, own_directory, user_cache_directory
from mlxhog.base.durable import replace_file
from mlxhog.errors import MAX_SHOWN, EnvironmentLacks, message_of, one_line

FORMAT = 2
GPU_ENGINES = {"mlx:gpu": "mlx", "torch:mps": "mps"}  # the Metal engine of each kind of GPU worker
GPU_WRITERS = {backend: f"metal:{engine}" for backend, engine in GPU_ENGINES.items()}
"""Backend of a GPU worker that applies its own updates -> its writer in the litmus matrix."""
PARAMETER_KERNELS = ("dense", "rows")
VISIBLE_S = 1.0  # a live reader must see a write within this time
NONE = "not installed"
CPU_DECODES = 50_000_000  # parameters; a guess, until doctor has measured
NEAR = 1.5  # factor between the sizes of two cells of which the same kernel is faster

Row = Mapping[str, Any]


class CellShape(NamedTuple):
    """An operator with Metal kernels, at the sizes of a layer.

    They are NH, DK, DV and the chunk of an mlstm_cell; NH and DH of an slstm_cell; the kernel size
    and the channels of a causal_conv.
    """

    operator: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.operator} {'x'.join(map(str, self.sizes))}"

    def distance(self, other: CellShape) -> float:
        """Return the largest factor between two sizes; infinite for another operator."""
        if self.operator != other.operator or len(self.sizes) != len(other.sizes):
            return math.inf
        return max(max(a / b, b / a) for a, b in zip(self.sizes, other.sizes, strict=True))


class CellTimes(NamedTuple):
    """Seconds of a forward and backward pass of a cell, eager and by Metal kernels."""

    backend: str
    cell: CellShape
    eager_s: float
    metal_s: float

    @classmethod
    def of(cls, row: Row) -> CellTimes:
        """Read a row, or raise what a damaged one raises."""
        cell = CellShape(row["operator"], tuple(max(1, int(size)) for size in row["sizes"]))
        return cls(row["backend"], cell, float(row["eager_s"]), float(row["metal_s"]))

    def row(self) -> Row:
        """Return the row of a record."""
        times = {"eager_s": self.eager_s, "metal_s": self.metal_s}
        return {"backend": self.backend, **self.cell._asdict(), **times}


@dataclass(frozen=True)
class Identity:
    """Chip, system and versions of a record."""

    chip: str
    system: str
    mlxhog: str
    mlx: str
    torch: str

    @property
    def file_name(self) -> str:
        """File name of the record: chip, system and MLX."""
        parts = (re.sub(r"[^A-Za-z0-9.]+", "_", x) for x in (self.chip, self.system, self.mlx))
        return "-".join(["doctor", *(part.strip("_").lower() for part in parts)]) + ".json"

    @property
    def cells_name(self) -> str:
        """File name of the times of cells."""
        return self.file_name.replace("doctor", "cells", 1)


@dataclass(frozen=True)
class Capability:
    """Whether a feature may be used on this machine, and the reason."""

    ok: bool
    reason: str


def _judged(judge: Callable[..., tuple[bool, str]]) -> Callable[..., Capability]:
    """Turn a method of the record into a capability, denied without a record."""

    @wraps(judge)
    def judged(self: CapabilityRecord, *of: Any) -> Capability:
        return Capability(*(judge(self, *of) if self.problem is None else (False, self.problem)))

    return judged


@dataclass(frozen=True)
class CapabilityRecord:
    """The record of this machine, or why there is no valid one."""

    path: Path  # of the record, whether it exists or not
    problem: str | None = None  # why the record does not count
    record: Row = field(default_factory=dict)  # its content; empty if there is a problem
    cells: tuple[CellTimes, ...] = ()  # also without a record

    @property
    def usable(self) -> bool:
        """Whether a record of this machine and these versions was read."""
        return self.problem is None

    @property
    def tokens_per_s(self) -> dict[str, float]:
        """Speed of a worker with one thread, by backend; of a GPU without Metal kernels."""
        return dict(self.record.get("tokens_per_s", {}))

    @_judged
    def pair(self) -> tuple[bool, str]:
        """Whether torch:mps beside mlx:gpu on one GPU is certainly faster."""
        row = self.record.get("pair")
        if row is None:
            return False, "the two have not been measured together: run `mlxhog doctor`"
        gains = row["low"] > 1
        return gains, (
            f"together they train {row['gain']:.2f} times the tokens/s of mlx:gpu alone "
            f"({row['low']:.2f} to {row['high']:.2f}, {row['pairs']} pairs of runs of "
            f"{row['model']}){', no certain gain' * (not gains)}"
        )

    @_judged
    def repeats(self, backend: str, kernels: str) -> tuple[bool, str]:
        """Whether two processes computed the same bits of a GPU gradient with these kernels."""
        same = self.record.get("repeats", {}).get(backend, {}).get(kernels)
        if same is None:
            return False, f"doctor has not compared two gradients of {backend} ({kernels})"
        what = "computed the same bits" if same else "differed in their bits"
        return same is True, f"two processes of {backend} ({kernels}) {what}"

    @_judged
    def gpu_write(self, backends: Iterable[str]) -> tuple[bool, str]:
        """Whether the GPU workers of a run may apply their own updates to the arena.

        Every pair of the run's writers with a GPU, two equal GPU writers included, must have lost
        and torn nothing in dense and in row writes.
        """
        writers = sorted({GPU_WRITERS.get(backend, "native") for backend in backends})
        on_gpu = set(writers) & set(GPU_WRITERS.values())
        if not on_gpu:
            return False, "no GPU worker in the mix"
        pairs = [pair for pair in combinations_with_replacement(writers, 2) if on_gpu & set(pair)]
        adds = 0
        tests = defaultdict[tuple[object, ...], list[Row]](list)
        for row in self.record["litmus"]:
            tests[tuple(sorted(row["writers"])), row["kernel"]].append(row)
        for pair, kernel in product(pairs, PARAMETER_KERNELS):
            case, rows = f"{' and '.join(pair)} ({kernel})", tests[pair, kernel]
            if not rows:
                return False, f"doctor has no result for {case} on this machine"
            for row in rows:
                if "error" in row:
                    return False, f"{case} failed: {one_line(row['error'])}"
                if row["lost"] != 0 or row["torn"] != 0:
                    lost = f"lost {row['lost']:,} of {row['adds']:,} adds here"
                    return False, f"{case} {lost}, {row['torn']:,} values were torn"
                adds += row["adds"]
        return True, f"none of {adds:,} adds of two writers at work was lost or torn here"

    @_judged
    def live_read(self, backend: str) -> tuple[bool, str]:
        """Whether workers of a backend may compute directly on the shared parameters."""
        reads = self.record["reads"]
        rows = [row for row in reads if (row["reader"], row["kind"]) == (backend, "live")]
        if not rows:
            return False, f"doctor has no live reads of {backend} on this machine"
        for row in rows:
            if "error" in row:
                return False, f"live reads of {backend} failed: {one_line(row['error'])}"
            if row["torn"] != 0 or row["backwards"] != 0 or row["visible_s"] > VISIBLE_S:
                return False, (
                    f"live reads of {backend} beside {row['writer']}: {row['torn']} torn, "
                    f"{row['backwards']} went backwards, a write took {row['visible_s']:.3f} s"
                )
        samples = sum(row["samples"] for row in rows)
        return True, f"{samples:,} live reads of {backend} were whole and fresh here"

    @_judged
    def kernels(self, engine: str) -> tuple[bool, str]:
        """Whether every Metal kernel agreed with its reference on an engine ("mlx" or "mps")."""
        rows = [row for row in self.record["kernels"] if row["engine"] == engine]
        if not rows:
            return False, f"doctor ran no kernel on {engine} on this machine"
        failed = [row["name"] for row in rows if not row["ok"]]
        if failed:
            return False, f"on {engine} these differ from reference: {', '.join(failed)}"
        return True, f"{len(rows)} kernels agree with their references on {engine}"

    def model_kernels(self, backend: str) -> Capability:
        """Whether a GPU worker may compute models with mlxhog's Metal kernels.

        With a record, all kernels must agree with their references on that engine, and a gradient
        by them with its own. Without one each worker checks itself (`mlxhog.backends.probes`).
        Which operators use them is decided by the sizes of the model's cells (`CellChoice`).
        """
        if backend not in GPU_ENGINES:
            return Capability(False, f"{backend} does not compute on a GPU")
        if self.problem is not None:
            return Capability(True, f"which each worker checks when it starts; {self.problem}")
        right = self.kernels(GPU_ENGINES[backend])
        if right.ok and backend not in self.record.get("tokens_per_s_metal", {}):
            return Capability(False, f"doctor has no right gradient of {backend} by Metal kernels")
        return right

    def times_of(self, backend: str, cell: CellShape) -> CellTimes | None:
        """Return the times of the nearest cell measured on a backend; None if none is near."""
        of_backend = (times for times in self.cells if times.backend == backend)
        nearest = min(of_backend, key=lambda times: cell.distance(times.cell), default=None)
        return nearest if nearest and cell.distance(nearest.cell) <= NEAR else None

    def decodes_on_cpu(self, n_params: int) -> Capability:
        """Whether the CPU's native decoder is faster than MLX on the GPU for a model.

        A CPU's time for a token grows with the parameters, a GPU's hardly does in small models,
        where launches take it. So the GPU is faster from the size on at which the CPU would need
        the GPU's time in the measured model; without a record, from `CPU_DECODES` parameters on.
        """
        row, limit = self.record.get("decoding"), CPU_DECODES
        reason = "doctor has not measured both decoders"
        if row is not None:
            on_cpu, on_gpu = (row["tokens_per_s"][name] for name in ("mlx:cpu", "mlx:gpu"))
            limit = int(row["n_params"] * on_cpu / on_gpu)
            reason = f"{row['model']}: {on_cpu:,.0f} tokens/s on the CPU, {on_gpu:,.0f} on the GPU"
        return Capability(
            n_params < limit, f"the CPU is faster below {limit:,} parameters; {reason}"
        )


def identity() -> Identity:
    """Describe this machine and the versions in use; imports no framework."""
    versions = {}
    for package in ("mlxhog", "mlx", "torch"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = NONE
    # Python says 16.0 of macOS 26 if it was linked for an older one (cpython issue 135675).
    macos = darwin.sysctl_text("kern.osproductversion") or platform.mac_ver()[0]
    system = f"{machine.here().system} {macos or platform.release()}"
    return Identity(machine.chip_name(), system, **versions)


def load(directory: Path | None = None, here: Identity | None = None) -> CapabilityRecord:
    """Read the record of this machine and these versions, by default from the user's cache.

    Without a valid one the result has the reason, and permits nothing but Metal kernels of the
    model, which every worker checks itself.
    """
    here = identity() if here is None else here
    path = (directory or user_cache_directory()) / here.file_name
    problem, record = _read(path, here)
    _, of_cells = _read(path.with_name(here.cells_name), here)
    try:
        cells = tuple(map(CellTimes.of, of_cells.get("cells", ())))
    except (KeyError, TypeError, ValueError):  # damaged: they are measured again
        cells = ()
    return CapabilityRecord(path, problem, record, cells)


def _read(path: Path, here: Identity) -> tuple[str | None, Row]:
    """Read a file of this identity: why it does not count, or None and its content."""
    try:
        if not is_kept(path):
            return "this machine has not been tested: run `mlxhog doctor`", {}
        record = plain_json.read(path)
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, expected {FORMAT}")
        there = asdict(Identity(**record["identity"]))
    except EnvironmentLacks as error:
        return f"{error}; then run `mlxhog doctor`", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} is damaged ({message_of(error)}): run `mlxhog doctor` again", {}
    for name, value in asdict(here).items():
        if there[name] != value:
            other = str(there[name])[:MAX_SHOWN]
            problem = f"the last `mlxhog doctor` ran with {name} {other}, this is {value}"
            return f"{problem}: run it again", {}
    return None, record


def save_cells(times: Iterable[CellTimes], directory: Path | None = None) -> None:
    """Add times of cells to those of this machine and these versions; errors as of `save`.

    Of two processes that add some at once, one may replace those of the other.
    """
    here = identity()
    known = {(one.backend, one.cell): one for one in (*load(directory, here).cells, *times)}
    record = {
        "format": FORMAT,
        "identity": asdict(here),
        "cells": [one.row() for one in known.values()],
    }
    save(record, here, directory, here.cells_name)


def save(
    record: Row, identity: Identity, directory: Path | None = None, file_name: str = ""
) -> Path:
    """Replace the record of an identity in a folder, by default the user's cache directory.

    Raises:
        EnvironmentLacks: the directory cannot be written, and the old record is unchanged; or, on a
            disk without modes, others could write the record, so no run will use it.
    """
    path = (directory or user_cache_directory()) / (file_name or identity.file_name)
    try:
        own_directory(path.parent)
        replace_file(path, plain_json.dumps(record, indent=1) + b"\n")
        with suppress(OSError):  # a disk may keep no modes
            path.chmod(0o600)
        is_kept(path)
    except OSError as error:
        raise EnvironmentLacks(
            f"the result cannot be kept in {path} ({darwin.reason(error)}), so no run will use it; "
            "set XDG_CACHE_HOME to a writable folder"
        ) from error
    return path
