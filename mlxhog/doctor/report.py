"""The file of `mlxhog doctor --report`, for a bug report from a Mac.

    doctor.json        the record; below `details` this machine, imports of shared memory, speeds of
                       the default model, and why a value is unknown
    train/output.txt   output of a default training run
    train/run.json     its result
    train/logs/        the ends of its workers' logs

It has no text of the user: the run trains on the bundled corpus and writes no sample, and the path
of the home directory is `~`.
"""

import importlib
import io
import json
import os
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mlxhog.arena.child import START_S, Child, Lane
from mlxhog.backends import create
from mlxhog.base import plain_json
from mlxhog.base.durable import disk_errors, replace_file
from mlxhog.base.machine import Machine
from mlxhog.base.paths import expanded
from mlxhog.base.workers import BACKENDS, GPU_BACKENDS, missing
from mlxhog.display.views import TellStep
from mlxhog.doctor import system
from mlxhog.doctor.backends import DECODE_S, measure_decoder, measure_speed
from mlxhog.doctor.checks import Check, CheckResult, check_child
from mlxhog.errors import ConfigError, EnvironmentLacks, whole_text
from mlxhog.optim import muon
from mlxhog.training.supervisor import api

STAGES: Final = 3
MODEL: Final = "minute"  # of the default training
GRADIENTS: Final = {False: 10, True: 2}  # at most, of each speed, by `quick`
SPEED_S: Final = 3.0  # about, for them
TRAIN_S: Final = {False: 20, True: 3}
LIMIT_S: Final = START_S + 300.0  # beyond its seconds, for a training whose kernels are compiled
IMPORTED_BYTES: Final = (1 << 14, 1 << 20, 1 << 26, 1 << 30)
LOG_LINES: Final = 200
MAX_LOG: Final = 1 << 16  # characters
TRAINING: Final = "default training"


def target(text: str) -> Path:
    """Return the path of a report, checked before anything is measured, or raise ConfigError."""
    path = expanded(text)
    if path.suffix != ".zip":
        raise ConfigError(
            f"--report {text}: it is a zip archive; write --report {text or 'mac'}.zip"
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise ConfigError(f"--report {text}: this is {what}; name a new file, such as mac.zip")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--report {text}: its folder cannot be written; name another file")
    return path


def write(path: Path, record: dict[str, Any], machine: Machine, tell: TellStep) -> None:
    """Measure the details of a report, train, and write the file.

    `record` gets the keys `details` and `report`, the path, and the training among its checks.

    Raises:
        EnvironmentLacks: the file cannot be written.
    """
    quick = bool(record["effort"]["quick"])
    tell("system", "")
    values, unknown = system.collect(system.FACTS)
    tell("speeds", "")
    measured, why = system.collect(_measures(machine, quick, lambda step: tell("speeds", step)))
    tell(TRAINING, f"{TRAIN_S[quick]} s")
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as name:
        result = _train(Path(name), TRAIN_S[quick])
        files = _files_of(Path(name))
    record["checks"].append(dict(vars(result)))
    if result.result == CheckResult.FAIL:
        record["failed"].append(result.name)
    details = {"system": values, **measured, "unknown": unknown | why}
    record |= {"report": str(path), "details": details}
    files["doctor.json"] = plain_json.dumps(record, indent=1).decode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, without_home(text))
    with disk_errors(f"writing {path}"):
        replace_file(path, packed.getvalue())


def without_home(text: str) -> str:
    """Return a text with `~` in place of the home directory, also where JSON has escaped it."""
    for home in {str(Path.home().resolve()), str(Path.home())} - {"/"}:
        for form in (home, json.dumps(home)[1:-1]):
            text = text.replace(form, "~")
    return text


def of_fault(quick: bool) -> dict[str, Any]:
    """Return the record of a doctor that failed with the exception being handled."""
    effort = {"quick": quick}
    return {"error": traceback.format_exc(), "effort": effort, "checks": [], "failed": []}


def _measures(
    machine: Machine, quick: bool, tell: Callable[[str], None]
) -> Mapping[str, Callable[[], Any]]:
    def of(name: str, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        def measure() -> Any:
            if (lack := missing(name, machine)) is not None:
                raise EnvironmentLacks(lack)
            tell(f"{function.__name__} {name}")
            with Child(promises=False) as child:
                return child.call(LIMIT_S, function, *arguments)

        return measure

    measures = {
        "import_s mlx": of("mlx:cpu", system.import_seconds, "mlx.core"),
        "import_s torch": of("torch:cpu", system.import_seconds, "torch"),
        "mlx_device": of("mlx:gpu", framework, "mlx", "device"),
        "mlx_imports": of("mlx:gpu", framework, "mlx", "imports", IMPORTED_BYTES),
        "mps_shares_memory": of("torch:mps", framework, "torch", "shares_memory"),
    }
    decode_s = 0.1 if quick else DECODE_S
    for name in BACKENDS:
        measures[f"polar_distance {name}"] = of(name, polar_distance, name)
        for form in ("eager", "metal" if name in GPU_BACKENDS else "native"):
            how = name, form, GRADIENTS[quick], MODEL, SPEED_S
            measures[f"tokens_per_s {name} {form}"] = of(name, measure_speed, *how)
        measures[f"decode_tokens_per_s {name}"] = of(name, measure_decoder, name, decode_s)
    return measures


def framework(lane: Lane, name: str, function: str, *arguments: Any) -> Any:
    """In a child: call a function of `probes_mlx` or `probes_torch`."""
    return getattr(importlib.import_module(f"mlxhog.doctor.probes_{name}"), function)(*arguments)


def polar_distance(lane: Lane, name: str) -> float:
    """In a child: return how far a backend's orthogonal matrices are from the CPU's."""
    return muon.distance(create(name, threads=1, kernels="auto").orthogonalize)


def _train(folder: Path, seconds: int) -> Check:
    """Train by default below a folder; its output goes to `output.txt`."""
    expected = f"trains for {seconds} s"
    consequence = "mlxhog train does not work here: the report has its output and its logs"

    def measure() -> tuple[bool, str]:
        with Child(promises=False, log=folder / "output.txt") as child:
            status = child.call(LIMIT_S + seconds, train, str(folder / "runs"), seconds)
        return status == "done", status

    return check_child(TRAINING, measure, expected, consequence)


def train(lane: Lane, folder: str, seconds: int) -> str:
    """In a child: train the default model on the bundled corpus; return the status."""
    try:
        return api.train(runs_dir=folder, time=seconds, sample_every="off", live="off").status
    except Exception as error:
        traceback.print_exc()
        print(f"error: {whole_text(error)}", flush=True)
        raise


def _files_of(folder: Path) -> dict[str, str]:
    paths = {"output.txt": folder / "output.txt"}
    for run in (folder / "runs").glob("*/run.json"):
        paths["run.json"] = run
        paths |= {f"logs/{log.name}": log for log in sorted((run.parent / "logs").glob("*.log"))}
    texts = dict[str, str]()
    for name, path in paths.items():
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if name != "run.json":
            text = "\n".join(text.splitlines()[-LOG_LINES:])[-MAX_LOG:]
        texts[f"train/{name}"] = text
    return texts
