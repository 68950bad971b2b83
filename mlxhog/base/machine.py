"""Properties of this machine that decide which workers can run on it."""

import importlib.util
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from mlxhog.base import darwin, resources

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """System, processor, memory and frameworks of a machine."""

    system: str  # "linux", "macos", or another system's own name
    architecture: str  # "x86_64", "arm64" or "aarch64"
    cores: int  # that this process may use; on a Mac those that are not efficiency cores
    memory_bytes: int  # that this process may use, however much others use now
    chip: str  # marketing name such as "Apple M4 Pro", or ""
    frameworks: frozenset[str]  # which of "mlx" and "torch" are installed
    translated: bool = False  # whether Rosetta translates this process and hides the real machine
    memory_limit: str = "the memory of this machine"  # what limits `memory_bytes`

    @property
    def apple_gpu(self) -> bool:
        """Whether this is macOS on Apple silicon, as Metal and MPS need."""
        return self.system == "macos" and self.architecture == "arm64"

    @property
    def name(self) -> str:
        """System and architecture, for people."""
        return f"{self.system} {self.architecture}"


def here() -> Machine:
    """Describe the machine that runs this process; imports no framework."""
    macos, memory = sys.platform == "darwin", resources.memory_limit()
    return Machine(
        system="macos" if macos else platform.system().lower(),
        architecture=platform.machine(),
        cores=darwin.fast_cores() if macos else resources.usable_cores(),
        memory_bytes=memory.n_bytes,
        chip=chip_name() if macos else "",
        frameworks=frozenset(
            name for name in ("mlx", "torch") if importlib.util.find_spec(name) is not None
        ),
        translated=macos and darwin.translated(),
        memory_limit=memory.cause,
    )


def chip_name() -> str:
    """Return the marketing name of the processor; "" if the system does not say."""
    if sys.platform == "darwin":
        return darwin.sysctl_text("machdep.cpu.brand_string")
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "")
