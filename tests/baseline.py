"""What must stay the same while the house becomes smaller: bits, rows, plans, helps, exports.

    python -m pytest tests/baseline.py           every entry of tests/golden/baseline.json
    python -m tests.baseline --write             record all of them anew, three minutes
    python -m tests.baseline --write --only lion record the entries whose name contains a text

The names in the record are the table: they have the flags of trainings and dry runs. With `--only`
a name that no entry contains is added, such as "dry run: --epochs 2".

`bits` has the SHA-256 of the parameters at the end of a training, how far they moved, and eight
sums of all movements with random signs. The hash counts where instruction set, C library, BLAS,
torch, MLX and NumPy are the recorded ones; else distance and sums count, within BASELINE_DISTANCE
and BASELINE_SUMS: a training that went as far, but elsewhere, has other sums. `help` has every
line, and a failure shows the diff; with another minor version of Python, whose argparse lays it
out, the first line counts. The rest is exact on every machine. A dry run records what it does not
share with the one without options.
"""

import argparse
import difflib
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from functools import cache
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mlxhog.base import child_processes
from mlxhog.checkpoint import checkpoint
from mlxhog.cli import GROUPS, main, names
from mlxhog.mad import tasks
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from tests.forked import CONTEXT
from tests.saved import SMALL, saved_run
from tests.tolerances import BASELINE_DISTANCE, BASELINE_SUMS, Tolerance, assert_close

FILE = Path(__file__).parent / "golden" / "baseline.json"

QUIET = (
    "--dtype float32 --sampled-softmax 0 --threads 1 --eval-every off --sample-every off "
    "--save-every off --live off --json --quiet"
)
TINY = (
    "--model tiny --set hidden_size=32,num_hidden_layers=2,num_heads=2 --seq-len 32 --batch-size 2 "
    f"--embedding-init random --steps 8 {QUIET}"
)
SUMS = 8
MINUTE = f"--model minute --steps 40 {QUIET}"

TWO_WORKERS = "sync round_robin avg_runs local_sgd fedprox scaffold diloco".split()
"""Strategies that repeat whatever the timing; others repeat with one worker only."""

OF_THE_MACHINE = (
    "worker_bytes memory_bytes memory_limit_bytes seconds tokens_per_s tokens_per_s_from "
    "token_files token_file_bytes notes config.keep_awake step_bytes max_tokens_per_s_from"
).split()
"""What a dry run says that another machine, or a later version's wording, would say otherwise."""


def flags_of(name):
    """The flags of a training, such as "--strategy sync on torch:cpu"."""
    line, _, backend = name.rpartition(" on ")
    if line == "minute of two":
        return f"{MINUTE} --strategy sync --workers {backend}*2"
    if line == "minute":
        return f"{MINUTE} --beta1 0.9 --strategy serial --workers {backend}"
    workers = f"--strategy serial --workers {backend}"
    if line.startswith("--strategy"):
        is_exact = line.split()[1] in TWO_WORKERS
        workers = f"{'--determinism rounds ' * is_exact}--workers {backend}{'*2' * is_exact}"
    optimizer = "" if "--optimizer" in line else "--optimizer adamw"
    return f"{line} {optimizer} {workers} {TINY}"


def printed(*words):
    """What a command prints that ends with exit code 0."""
    with redirect_stdout(io.StringIO()) as out:
        try:
            code = main(words)
        except SystemExit as end:  # of argparse's --help
            code = end.code
    assert code == 0, f"mlxhog {' '.join(words)}: exit code {code}"
    return out.getvalue()


def digest(*parts):
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def bits(name):
    result = json.loads(printed("train", *flags_of(name).split()))
    saved = checkpoint.load(Path(result["checkpoint"]))
    model = saved.model
    start = families.init_params(model, seed=0)
    rng, moved, sums = np.random.default_rng(0), 0.0, np.zeros(SUMS)
    for name in sorted(start):
        path = np.ravel(saved.params[name] - start[name]).astype(float)
        moved += path @ path
        sums += [np.where(rng.random(path.size) < 0.5, path, -path).sum() for _ in range(SUMS)]
    parts = (part for n, a in sorted(saved.params.items()) for part in (n.encode(), a.tobytes()))
    moved, *sums = (float(f"{x:.6g}") for x in (moved**0.5, *sums))
    return {"sha256": digest(*parts), "moved": moved, "sums": sums}


def flat(facts, prefix=""):
    fields = {}
    for name, value in facts.items():
        fields |= flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


@cache
def dry_run(flags):
    workers = "" if "--workers" in flags else "--workers mlx:cpu*2"
    words = f"{flags} {workers} --threads 1 --max-workers 4 --dry-run --json".split()
    facts = json.loads(printed("train", *words))
    facts["workers"] = [worker["backend"] for worker in facts["workers"]]
    del facts["changed"], facts["decided"]  # copies of fields of `config`
    return {name: value for name, value in flat(facts).items() if name not in OF_THE_MACHINE}


def unlike_the_default(flags):
    flags = flags.removeprefix("defaults")
    default, fields = dry_run(""), dry_run(flags)
    names = {**default, **fields}
    return {n: fields.get(n) for n in names if not flags or fields.get(n) != default.get(n)}


def help_of(command):
    with mock.patch.dict(os.environ, COLUMNS="100"):
        return {"lines": printed(*command.split(), "--help").splitlines()}


def rows(task):
    arrays = vars(tasks.make_task(task, seed=0))
    return {
        name: digest(str((array.shape, array.dtype)).encode(), array.tobytes())[:16]
        for name, array in arrays.items()
        if isinstance(array, np.ndarray)
    }


def export(name):
    preset, _, target = name.partition(" --format ")
    model = SMALL if preset == "small" else load_architecture(preset)
    params = {
        name: (np.arange(np.prod(spec.shape)) % 251 / np.float32(251)).reshape(spec.shape)
        for name, spec in families.param_spec(model).items()
    }
    params = {name: values.astype(np.float32) for name, values in params.items()}
    source = saved_run(Path("runs"), model=model, params=params)
    printed("convert", str(source.directory), "exported", "--format", target, "--quiet")
    files = {file.name: file.read_bytes() for file in sorted(Path("exported").iterdir())}
    return {name: digest(data)[:16] for name, data in files.items() if name != "README.md"}


SECTIONS = {
    "mad": rows, "help": help_of, "dry run": unlike_the_default, "export": export, "bits": bits,
}  # fmt: skip
FOUND = [
    *(f"mad: {name}" for name in (*tasks.BENCHMARK, *tasks.TASKS_BESIDE)),
    *(f"help: {name}" for name in (*names(), "cluster start", *list(GROUPS)[1:])),
]
SLOW = ("dry run", "export", "bits")


def recorded():
    return json.loads(FILE.read_text(encoding="utf-8"))


ENTRIES = dict.fromkeys([*FOUND, *recorded()["entries"]])


def value_of(name):
    """The value of an entry here."""
    section, _, rest = name.partition(": ")
    return SECTIONS[section](rest)


def made_with():
    """What bits depend on, and what helps depend on."""
    import torch

    from mlxhog._native import ops

    kernels = (platform.machine(), torch.backends.cpu.get_cpu_capability(), ops.gemm_kernel())
    packages = ("torch", "mlx", "numpy")
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "instructions": " ".join(kernels),
        "libc": " ".join(platform.libc_ver()),  # its exp, and roughly the compiler
        "blas": os.environ.get("OPENBLAS_CORETYPE", ""),  # what NumPy's products are asked to use
        **{name: version(name).partition("+")[0] for name in packages},
    }


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """One cache for all trainings, whose text is the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith(SLOW) else [])
        for name in ENTRIES
    ],
)
def test_is_as_recorded(name, caches, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    monkeypatch.chdir(tmp_path)
    record = recorded()
    expected, value = record["entries"].get(name, {}), value_of(name)
    here, there = made_with(), record["made with"]
    if name.startswith("help") and here["python"] != there["python"]:
        expected, value = ({"lines": one.get("lines", [])[:1]} for one in (expected, value))
    if name.startswith("bits") and {**here, "python": ""} != {**there, "python": ""}:
        assert_close(value["moved"], expected["moved"], BASELINE_DISTANCE)
        far = BASELINE_SUMS.of_largest * expected["moved"]
        assert_close(np.array(value["sums"]), np.array(expected["sums"]), Tolerance(atol=far))
        expected = value
    changed = [
        f"{field}: recorded {expected.get(field)!r}, now {value.get(field)!r}"
        for field in {**expected, **value}
        if expected.get(field) != value.get(field)
    ]
    if name.startswith("help"):
        lines = (one.get("lines", []) for one in (expected, value))
        changed = list(difflib.unified_diff(*lines, "recorded", "now", lineterm=""))
    assert not changed, "\n".join([name, *changed])


def test_every_task_and_command_of_the_record_exists():
    assert {name for name in ENTRIES if name.startswith(("mad", "help"))} == {*FOUND}


def write(only):
    """Record the entries whose name contains a text; entries that are gone leave the file."""
    here = made_with()
    old = recorded() if only else {"made with": here, "entries": {}}
    vars(child_processes)["get_context"] = lambda method: CONTEXT
    entries = {}
    names = [name for name in ENTRIES if name in FOUND or not name.startswith(("mad", "help"))]
    if only.partition(": ")[0] in SECTIONS and not any(only in name for name in names):
        names.append(only)
    chosen = {name for name in names if only in name or name not in old["entries"]}
    there = old["made with"]
    depends = ("bits", "help") if here["python"] != there["python"] else ("bits",)
    if here != there and any(name.startswith(depends) for name in chosen):
        raise SystemExit(f"recorded with {there}, this is {here}; leave --only out")
    for name in names:
        if name in chosen:
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                entries[name] = value_of(name)
            print(name, flush=True)
        else:
            entries[name] = old["entries"][name]
    text = ",\n".join(f"{json.dumps(n)}: {json.dumps(value)}" for n, value in entries.items())
    head = json.dumps(there)
    FILE.write_text(f'{{"made with": {head}, "entries": {{\n{text}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", required=True)
    parser.add_argument("--only", metavar="TEXT", default="", help="entries whose name contains it")
    write(parser.parse_args().only)
    sys.exit()
