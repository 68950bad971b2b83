"""Facts about this machine for a report: macOS, Python, memory, power.

Each is a function; where it raises, the report has the reason. No framework is imported.
"""

import importlib
import platform
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import psutil

from mlxhog.base import darwin
from mlxhog.errors import EnvironmentLacks, message_of

LIMIT_S: Final = 20.0  # for a macOS program
MAX_CHARACTERS: Final = 4000  # of what a program prints
LANGUAGES: Final = {14: "3.1", 15: "3.2"}
"""Version of the Metal language that MLX and PyTorch request, by macOS; 4.0 from 26 on."""


def collect(facts: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the facts, None where one is unknown, and the reasons."""
    values, reasons = dict[str, Any](), dict[str, str]()
    for name, fact in facts.items():
        try:
            values[name] = fact()
        except Exception as error:  # a report is whole, whatever one fact does
            values[name], reasons[name] = None, message_of(error)
    return values, reasons


def _setting(name: str) -> str:
    if text := darwin.sysctl_text(name):
        return text
    raise EnvironmentLacks(
        f"macOS does not say {name}" if sys.platform == "darwin" else "this is not macOS"
    )


def output_of(*command: str) -> str:
    """Return the output of a macOS program.

    Raises:
        EnvironmentLacks: it does not run here.
    """
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentLacks(f"{command[0]} does not run: {message_of(error)}") from error
    if process.returncode:
        raise EnvironmentLacks(f"{' '.join(command)} ended with code {process.returncode}")
    return process.stdout.strip()[:MAX_CHARACTERS]


def import_seconds(lane: object, module: str) -> float:
    """In a child without frameworks: return the seconds of an import."""
    began_s = time.perf_counter()
    importlib.import_module(module)
    return time.perf_counter() - began_s


def _low_power() -> bool:
    for line in output_of("pmset", "-g").splitlines():
        if line.split()[:1] == ["lowpowermode"]:
            return line.split()[1] == "1"
    raise EnvironmentLacks("pmset -g has no line lowpowermode")


def _core_levels() -> list[dict[str, Any]]:
    levels = (f"hw.perflevel{level}" for level in range(darwin.sysctl_int("hw.nperflevels") or 0))
    return [
        {
            "name": darwin.sysctl_text(f"{level}.name"),
            "cores": darwin.sysctl_int(f"{level}.physicalcpu"),
        }
        for level in levels
    ]


def _stays_awake() -> str:
    with darwin.awake() as note:
        return note or "caffeinate runs"


def _on_macos(fact: Callable[[], Any]) -> Callable[[], Any]:
    def checked() -> Any:
        _setting("kern.osproductversion")
        return fact()

    return checked


FACTS: Final[dict[str, Callable[[], Any]]] = {
    "macos": lambda: _setting("kern.osproductversion"),
    "macos_build": lambda: _setting("kern.osversion"),
    "mac": lambda: _setting("hw.model"),
    "metal_language": lambda: LANGUAGES.get(
        int(_setting("kern.osproductversion").partition(".")[0]), "4.0"
    ),
    "core_levels": _on_macos(_core_levels),
    "performance_cores_granted": _on_macos(lambda: darwin.ask_for_performance_cores()),
    "caffeinate": _on_macos(_stays_awake),
    "displays": _on_macos(lambda: darwin.displays()),
    "power": lambda: output_of("pmset", "-g", "batt"),
    "low_power_mode": _low_power,
    "thermal": lambda: output_of("pmset", "-g", "therm"),
    "kernel": platform.release,
    "python": lambda: sys.version,
    "python_platform": sysconfig.get_platform,
    "python_framework": lambda: sysconfig.get_config_var("PYTHONFRAMEWORK") or "",
    "memory": lambda: dict(psutil.virtual_memory()._asdict()),
    "swap": lambda: dict(psutil.swap_memory()._asdict()),
    "open_files": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
    "tmpdir_characters": lambda: len(tempfile.gettempdir()),
}
