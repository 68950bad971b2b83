"""Memory and cores that this process may use: the machine's, or fewer.

Containers, batch systems and systemd put a process into control groups, whose limits, and those of
every group above, hold. Version 2 has one tree of groups, version 1 a tree per controller; a
machine may have both. The files of a group:

                     version 2                  version 1
    memory limit     memory.max, memory.high    memory.limit_in_bytes
    memory in use    memory.current             memory.usage_in_bytes
    parts of it      memory.stat                memory.stat, total_*
    processor time   cpu.max                    cpu.cfs_quota_us, cpu.cfs_period_us
    kills            memory.events              memory.oom_control

The memory in use includes the page cache, which the kernel drops before it refuses memory, so clean
file pages count as available. Swap does not count. A missing or malformed file sets no limit.

Sources: Linux, admin-guide/cgroup-v2 and cgroup-v1/memory; cgroups(7), proc_pid_mountinfo(5).
"""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mlxhog.errors import message_of

_PROC, _SHM = Path("/proc/self"), Path("/dev/shm")
_RAISE = (
    "raise that limit (docker run --memory, limits.memory of Kubernetes, MemoryHigh and MemoryMax "
    "of systemd, --mem of Slurm)"
)

_CGROUP_MOUNT = re.compile(
    r"\S+ \S+ \S+ (?P<root>/\S*) (?P<point>/\S*) .* - cgroup(?P<version>2?) \S+ (?P<options>\S+)"
)
"""A line of mountinfo; spaces in it are octal."""

_SHORTAGE = re.compile(
    r"MemoryError|bad_alloc|out of memory|not enough memory|memory is used up"
    r"|(can't|[Cc]annot|[Uu]nable to) allocate"
)


class MemoryLimit(NamedTuple):
    """An amount of memory, what limits it, and the way out if it is too little."""

    n_bytes: int
    cause: str
    way_out: str


def memory_limit() -> MemoryLimit:
    """Return the memory that this process may use, whatever is in use now."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [MemoryLimit(physical, "the memory of this machine", "use a larger machine")]
    for group, name, n_bytes in _memory_groups():
        limits.append(MemoryLimit(n_bytes, f"{name} of control group {group}", _RAISE))
    return min(limits)


def available_memory() -> MemoryLimit:
    """Return the memory that is still available to this process."""
    import psutil  # which commands that only list things do not need

    memory, name = psutil.virtual_memory(), "machine"
    if sys.platform == "darwin":  # which compresses, swaps out or drops all but wired memory
        n_bytes, name = memory.total - memory.wired, "Mac"
    else:
        n_bytes = memory.available
    cause = f"this {name} has {n_bytes:,} available"
    limits = [MemoryLimit(n_bytes, cause, "quit other programs")]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY and sys.platform != "darwin":  # which ignores it
        n_bytes = max(0, address_space - psutil.Process().memory_info().vms)
        cause = (
            f"this process may have {address_space:,} (ulimit -v), of which {n_bytes:,} are left"
        )
        limits.append(MemoryLimit(n_bytes, cause, "raise that limit"))
    for group, name, limit_bytes in _memory_groups():
        n_bytes = max(0, limit_bytes - _bytes_in_use(group))
        cause = f"control group {group} has {n_bytes:,} left of its {limit_bytes:,} ({name})"
        limits.append(MemoryLimit(n_bytes, cause, _RAISE))
    return min(limits)


def available_shared_memory() -> MemoryLimit:
    """Return the memory that is still available for shared segments.

    On Linux they have to fit in /dev/shm, which has 64 MB in many containers.
    """
    limits = [available_memory()]
    if _SHM.is_dir():
        space = os.statvfs(_SHM)
        n_bytes = space.f_bavail * space.f_frsize
        way_out = f"enlarge it (docker run --shm-size, or mount -o remount,size=8G {_SHM})"
        limits.append(MemoryLimit(n_bytes, f"{_SHM} has {n_bytes:,} free", way_out))
    return min(limits)


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    These are the cores of its affinity mask, or the quota of a control group, rounded up: the
    kernel stops all threads of the group together, so none waits for another.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    for group in _groups("cpu"):
        quota, period = _column(group / "cpu.max", 0), _column(group / "cpu.max", 1)
        quota = quota or _column(group / "cpu.cfs_quota_us")
        period = period or _column(group / "cpu.cfs_period_us")
        if quota and period:
            cores = min(cores, -(-quota // period))
    return cores


def oom_kills() -> int:
    """Return the number of OOM kills in this process's control group."""
    names = ("memory.events", "memory.oom_control")
    tables = [_table(group / name) for group in _groups("memory")[:1] for name in names]
    return sum(table.get("oom_kill", 0) for table in tables)


def says_out_of_memory(text: str) -> bool:
    """Whether a message of Python, NumPy, a framework or C++ is about too little memory."""
    return _SHORTAGE.search(text) is not None


def shortage(error: BaseException) -> str:
    """Return a message for an error for lack of memory; "" for other errors."""
    if not isinstance(error, MemoryError) and not (
        isinstance(error, OSError | RuntimeError) and says_out_of_memory(str(error))
    ):
        return ""
    reason = message_of(error) if str(error) else available_memory().cause
    return f"the memory is used up: {reason}"


def _groups(controller: str) -> list[Path]:
    """Return the folders of this process's groups, in each tree its own first, then those above."""
    folders = list[Path]()
    for line in _lines(_PROC / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for mount in map(_CGROUP_MOUNT.fullmatch, _lines(_PROC / "mountinfo")):
            if mount is None or (mount["version"] == "2") != (controllers == ""):
                continue
            if controllers and not all(
                controller in names.split(",") for names in (controllers, mount["options"])
            ):
                continue
            own, root = PurePosixPath(path), mount["root"]
            is_below = own.is_relative_to(root) and ".." not in own.parts
            below = own.relative_to(root) if is_below else PurePosixPath()
            top = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount["point"]))
            folders += [top / one for one in (below, *below.parents)]
    return folders


def _memory_groups() -> Iterator[tuple[Path, str, int]]:
    for group in _groups("memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            if (n_bytes := _column(group / name)) is not None:
                yield group, name, n_bytes


def _bytes_in_use(group: Path) -> int:
    """Return the memory of a group that the kernel cannot simply drop."""
    used = _column(group / "memory.current") or _column(group / "memory.usage_in_bytes") or 0
    parts = _table(group / "memory.stat")
    total, file = ("total_", "total_") if "total_inactive_file" in parts else ("", "file_")
    cache = sum(parts.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))
    unwritten = sum(parts.get(f"{file}{kind}", 0) for kind in ("dirty", "writeback"))
    return max(0, used - max(0, cache - unwritten))


def _lines(path: Path) -> list[str]:
    try:
        return os.fsdecode(path.read_bytes()).split("\n")
    except OSError:
        return []


def _column(path: Path, column: int = 0) -> int | None:
    """Return a number in the first line of a file; None for a text such as "max"."""
    texts = "".join(_lines(path)[:1]).split()[column : column + 1]
    return int(texts[0]) if texts and texts[0].isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}
