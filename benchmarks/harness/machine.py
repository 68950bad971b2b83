"""The machine that a benchmark runs on: what it is, whose cores are used, and what others use."""

import hashlib
import os
import platform
import re
import resource
import subprocess
import sys
import time
from functools import wraps
from importlib import metadata
from pathlib import Path

import psutil

import mlxhog
from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import CPU_INFO, chip_name
from mlxhog.config.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # for `tests` and `tools`, also in the processes of a script
LETTERS = {"AuthenticAMD 25": "N", "AuthenticAMD 26": "M", "GenuineIntel 6": "S"}
"""Letters of machines in docs/results.md: N is a Zen 4, M a Zen 5, S a Xeon."""
WRITTEN = ("benchmarks/results", "docs/generated", "docs/results.md", "docs/pictures/lock-free.svg")
BUSY_SHARE = 0.1  # of one core, used by others: more than that and timings say little
TINY_MODE = "MLXHOG_BENCHMARK_TINY"
"""Set in the environment, where the processes of a script find it as well."""


ALIKE = (
    (r"\('(\w*lr|schedule|warmup|backoff_\w+|min_lr_ratio)', [^()]*\),? ?", ""),
    (r"(torch|mlx):cpu", "cpu"),
    (r"cpu,cpu", "cpu*2"),
    (r"'[^']*\.yaml'|0x[0-9a-f]+", "one"),
    (r"\d[\d.e+-]*", "0"),
)
"""Patterns in the arguments of a training, and what counts in their place with `--tiny`."""


def set_tiny(tiny):
    """Choose what `smallest` returns here and in the processes that begin later."""
    os.environ.pop(TINY_MODE, None)
    if tiny:
        os.environ[TINY_MODE] = "1"


def one_of_a_kind(measure):
    """With `--tiny`, calls that differ in numbers, learning rates or the framework alone are one.

    So each strategy and each optimizer trains once, by one worker and by several.
    """
    results = {}

    @wraps(measure)
    def once(*arguments, **options):
        if smallest(False, True):
            return measure(*arguments, **options)
        kind = repr((arguments, sorted(options.items())))
        for pattern, text in ALIKE:
            kind = re.sub(pattern, text, kind)
        if kind not in results:
            results[kind] = measure(*arguments, **options)
        return results[kind]

    return once


def smallest(tiny, usual):
    """Return the size of `--tiny`, which only asks whether a script runs, or the usual one."""
    return tiny if TINY_MODE in os.environ else usual


def machine():
    """Letter, processor, cores this process may use, memory and system."""
    info = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    facts = dict(re.findall(r"^(vendor_id|cpu family)\s*: (.*)$", info, re.MULTILINE))
    return {
        "letter": LETTERS.get(" ".join(facts.values()), "unknown"),
        "cpu": chip_name() or platform.processor(),
        "cores": len(cores()),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def cores():
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(*allowed):
    """Keep this process on some cores; returns whether the system can (macOS cannot)."""
    if can := hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed)
    return can


def versions(*packages):
    """Installed versions of Python and of the packages; None where one is missing."""
    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def commit():
    """The last commit that changed more than results, with "+" where something else is measured.

    Results and pages that `benchmarks/all.py` writes do not count, committed or not: a run goes on
    after some of its results were committed. "+" means that other files differ from the commit,
    or that the imported package is not the one of this checkout. None outside a checkout.
    """

    def git(*arguments):
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return ended.stdout.strip() if ended.returncode == 0 else None

    paths = ["--", ".", *(f":(exclude){path}" for path in WRITTEN)]
    last = git("log", "-1", "--abbrev=12", "--format=%h", *paths)
    changed = git("status", "--porcelain", "--untracked-files=no", *paths)
    return last and last + ("+" if changed or package() != ROOT / "mlxhog" else "")


def defaults_digest():
    """Digest of what `mlxhog train` does without options: every default, and its preset."""
    config = TrainConfig()
    preset = (ROOT / "models" / f"{config.model}.yaml").read_text("utf-8")
    return hashlib.sha256(f"{config!r}{preset}".encode()).hexdigest()[:12]


def measured_with(*packages):
    """What a result was measured with."""
    return {
        "machine": machine(), "versions": versions(*packages), "commit": commit(),
        "defaults": defaults_digest(),
    }  # fmt: skip


def package():
    """The folder of the package that is measured."""
    return Path(mlxhog.__file__).resolve().parent


def not_this_commit():
    """Why results of now would be of no commit, and the way out; empty where they are of one."""
    if package() != ROOT / "mlxhog":
        return f"mlxhog is that of {package()}; here: python -m pip install -e ."
    from mlxhog import _native

    built = Path(_native.__file__).stat().st_mtime
    sources = (path for path in (ROOT / "metal" / "native").rglob("*") if path.is_file())
    if newer := [path for path in sources if path.stat().st_mtime > built]:
        return f"{newer[0].name} is newer than the native module: python -m pip install -e ."
    at = commit()
    if at is None:
        return "this is no git checkout"
    return "files differ from the commit: commit or stash them" if at.endswith("+") else ""


def resident(pid=None):
    """Resident bytes of a process now, and at their highest; of this process by default.

    Linux's ru_maxrss is no use here: a new process begins with that of its parent. Where /proc is
    missing (macOS), one of the two stands for both.
    """
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, most
    if pid is None:
        n_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    else:
        command = ["ps", "-o", "rss=", "-p", str(pid)]
        n_bytes = 1024 * int(subprocess.run(command, capture_output=True, check=True).stdout)
    return n_bytes, n_bytes


# -- other people's load --------------------------------------------------------------------------


def wait_until_quiet(patience_s=60.0, window_s=2.0):
    """Wait for a window in which others are quiet; returns their load in the last window."""
    deadline = time.monotonic() + smallest(0.0, patience_s)
    while True:
        watch = LoadWatch()
        time.sleep(smallest(0.0, window_s))
        others = watch.look().others
        if others <= BUSY_SHARE or time.monotonic() >= deadline:
            return others
