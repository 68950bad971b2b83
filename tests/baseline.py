"""What must stay the same while the house becomes smaller: bits, rows, plans, helps, exports.

    python -m pytest tests/baseline.py           every entry of tests/golden/baseline.json
    python -m tests.baseline --write             record all of them anew, three minutes
    python -m tests.baseline --write --only lion record the entries whose name contains a text

`bits` has the SHA-256 of the parameters at the end of a training, and how far they moved. The hash
counts where instruction set, C library, BLAS, torch, MLX and NumPy are the recorded ones; else the
distance counts, within BASELINE_DISTANCE. `help` is compared by digest with the recorded minor
version of Python, whose argparse lays it out, and else by its first line. The rest is exact on
every machine. A dry run records what it does not share with the one without options.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mlxhog.arena import worker_pool
from mlxhog.checkpoint import checkpoint
from mlxhog.cli import COMMANDS, MAD, main
from mlxhog.mad import tasks
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from tests.forked import CONTEXT
from tests.saved import SMALL, saved_run
from tests.tolerances import BASELINE_DISTANCE, assert_close

FILE = Path(__file__).parent / "golden" / "baseline.json"

QUIET = "--threads 1 --eval-every off --sample-every off --save-every off --live off --json --quiet"
TINY = (
    "--model tiny --set hidden_size=32,num_hidden_layers=2,num_heads=2 --seq-len 32 --batch-size 2 "
    f"--steps 8 {QUIET}"
)
MINUTE = f"--model minute --steps 40 {QUIET}"

TWO_WORKERS = """
sync
sync --grad-accumulation 2
sync --optimizer muon
round_robin
round_robin --lr-workers sqrt
round_robin --predict last --moments shared
round_robin --delay-feedback
avg_runs
avg_runs --split dirichlet --split-alpha 0.5
local_sgd --average-every 2
local_sgd --average-every 2 --local-after 3
fedprox --average-every 2
fedprox --average-every 2 --prox-mu 0.5 --prox decoupled
scaffold --average-every 2
scaffold --average-every 3
diloco --average-every 2
diloco --average-every 2 --outer-lr 0.5 --outer-momentum 0.8
"""
"""Strategies that repeat whatever the timing."""

ONE_WORKER = """
serial
serial --predict own
serial --sparsify topk:0.2
serial --sparsify threshold:0.5 --error-feedback false
sim
sim --sim-staleness uniform:0:3
sim --sim-staleness speed:1,1,4 --lr-workers linear
sim --sim-staleness fixed:3 --staleness-lr linear:0.5
sim --sim-staleness fixed:3 --staleness-lr delay_adaptive
sim --sim-staleness fixed:3 --delay-compensation adaptive:0.1
sim --sim-staleness fixed:3 --delay-feedback
sim --sim-staleness fixed:3 --optimizer muon
sim --sim-staleness fixed:3 --optimizer lion
hogwild
hogwild --predict own
hogwild --moments shared
hogwild --moments shared --predict last
hogwild --blocks disjoint --rotate-every 2
hogwild --async-after 0.5
hogwild --optimizer muon
async_ps
async_ps --staleness-lr exp:0.9
ssp
ssp --slack 2
locked
locked --delay-compensation constant:0.1
aig
aig --rescale-by-speed
"""
"""Strategies whose order is decided by timing, so that they repeat with one worker only."""

OPTIMIZERS = """
adamw --beta1 0.8 --beta2 0.99 --eps 1e-6 --weight-decay 0.05
adamw --beta2-half-life 1000
adan
adan --beta1 0.8 --beta2 0.9 --beta3 0.8 --eps 1e-6
apollo
apollo --projection-rank 2 --projection-scale 3 --projection-every 3
apollo --projection-rank 3
apollo-mini
apollo-mini --projection-scale 3 --projection-every 3
lion
lion --beta1 0.85 --beta2 0.9
momentum
momentum --momentum 0.5 --weight-decay 0.2
muon
muon --nesterov 0.15 --beta1 0.8 --eps 1e-6
muon --orthogonalization ns5
muon --orthogonalization-rows 8 --orthogonalization-every 3
sgd
sgd --weight-decay 0.2 --clip 0
soap
soap --precondition-every 3 --beta2-half-life 1000
"""

SCHEDULES = """
constant
constant --warmup 0.5
cosine --warmup 0.3 --lr-floor 0.3
wsd
wsd --warmup 0.3 --lr-floor 0.5
inverse
inverse --backoff-steps 3
backoff
backoff --backoff-steps 3 --backoff-beta 0.5
backoff --backoff-epochs 1
"""

DRY_RUNS = """
--workers torch:cpu*2
--workers mlx:cpu
--workers mlx:cpu,torch:cpu
--model tiny
--model 5m
--model 10m --time 10m
--model 7to1-tiny
--model 5m-v1
--model mad-striped
--model lfm2-tiny
--model tiny --set hidden_size=64,num_heads=2
--model minute --set ngram_orders=2-3
--seq-len 64 --batch-size 8
--grad-accumulation 4
--steps 100
--tokens 1000000
--epochs 2
--val tail --tokenizer bytes
--eval-every 100 --eval-tokens 4096
--optimizer adamw
--optimizer adamw --lr 0.001 --clip 1
--optimizer adan
--optimizer apollo
--optimizer lion
--optimizer momentum
--optimizer sgd
--optimizer soap
--schedule constant
--schedule wsd --warmup 0.1
--schedule inverse
--strategy hogwild --moments shared
--strategy sync --determinism rounds --steps 100
--strategy local_sgd
--strategy diloco
--strategy scaffold
--strategy async_ps
--strategy ssp --slack 2
--strategy locked
--strategy sim --workers mlx:cpu
"""
OF_THE_MACHINE = (
    "worker_bytes memory_bytes memory_limit_bytes seconds tokens_per_s tokens_per_s_from "
    "token_files token_file_bytes notes config.keep_awake"
).split()
"""What a dry run says that another machine, or a later version's wording, would say otherwise."""


def lines(text):
    return text.strip().splitlines()


def trainings():
    """The flags of every training by its name."""
    arms = {
        f"--strategy {line}": "--determinism rounds --workers {}*2" for line in lines(TWO_WORKERS)
    }
    arms |= {f"--strategy {line}": "--workers {}" for line in lines(ONE_WORKER)}
    arms |= {f"--optimizer {line}": "--strategy serial --workers {}" for line in lines(OPTIMIZERS)}
    arms |= {f"--schedule {line}": "--strategy serial --workers {}" for line in lines(SCHEDULES)}
    flags = {}
    for k, (name, others) in enumerate(arms.items()):
        backend = ("torch:cpu", "mlx:cpu")[k % 2]
        optimizer = "" if "--optimizer" in name else "--optimizer adamw"
        flags[f"{name} on {backend}"] = f"{name} {optimizer} {others.format(backend)} {TINY}"
    for backend in ("torch:cpu", "mlx:cpu"):
        flags[f"minute on {backend}"] = f"{MINUTE} --strategy serial --workers {backend}"
    flags["minute of two on mlx:cpu"] = f"{MINUTE} --strategy sync --workers mlx:cpu*2"
    return flags


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


def bits(flags):
    result = json.loads(printed("train", *flags.split()))
    saved = checkpoint.load(Path(result["checkpoint"]))
    model = families.read(saved.config)
    start = families.init_params(model, seed=0)
    moved = sum(float(np.sum((saved.params[n] - start[n]) ** 2.0)) for n in start) ** 0.5
    parts = (part for n, a in sorted(saved.params.items()) for part in (n.encode(), a.tobytes()))
    return {"sha256": digest(*parts), "moved": float(f"{moved:.6g}")}


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
    default, fields = dry_run(""), dry_run(flags)
    names = {**default, **fields}
    return {n: fields.get(n) for n in names if not flags or fields.get(n) != default.get(n)}


def help_of(command):
    with mock.patch.dict(os.environ, COLUMNS="100"):
        text = printed(*command.split(), "--help")
    return {"sha256": digest(text.encode()), "first": text.partition("\n")[0]}


def rows(task):
    arrays = vars(tasks.make_task(task, seed=0))
    return {
        name: digest(str((array.shape, array.dtype)).encode(), array.tobytes())[:16]
        for name, array in arrays.items()
        if isinstance(array, np.ndarray)
    }


def export(preset, target):
    model = SMALL if preset == "small" else load_architecture(preset)
    params = {
        name: (np.arange(np.prod(spec.shape)) % 251 / np.float32(251)).reshape(spec.shape)
        for name, spec in families.param_spec(model).items()
    }
    params = {name: values.astype(np.float32) for name, values in params.items()}
    source = saved_run(Path("runs"), model=model, params=params)
    printed("convert", str(source.directory), "exported", "--to", target, "--quiet")
    files = {file.name: file.read_bytes() for file in sorted(Path("exported").iterdir())}
    return {name: digest(data)[:16] for name, data in files.items() if name != "README.md"}


COMMANDS_WITH_HELP = [
    *COMMANDS, "runs rm", "cluster start", *(f"mad {c}" for c in MAD),
]  # fmt: skip
SECTIONS = {
    "mad": {name: partial(rows, name) for name in (*tasks.BENCHMARK, *tasks.TASKS_BESIDE)},
    "help": {name: partial(help_of, name) for name in COMMANDS_WITH_HELP},
    "dry run": {
        flags or "defaults": partial(unlike_the_default, flags) for flags in ["", *lines(DRY_RUNS)]
    },
    "export": {
        f"{preset} --to {target}": partial(export, preset, target)
        for preset, target in (("small", "hf"), ("mad-attention", "hf"), ("7to1-tiny", "xlstm"))
    },
    "bits": {name: partial(bits, flags) for name, flags in trainings().items()},
}
ENTRIES = {f"{s}: {name}": value for s, names in SECTIONS.items() for name, value in names.items()}
SLOW = ("dry run", "export", "bits")


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


def recorded():
    return json.loads(FILE.read_text(encoding="utf-8"))


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
    expected, value = record["entries"].get(name, {}), ENTRIES[name]()
    here, there = made_with(), record["made with"]
    if name.startswith("help") and here["python"] != there["python"]:
        expected["sha256"] = value["sha256"]
    if name.startswith("bits") and {**here, "python": ""} != {**there, "python": ""}:
        assert_close(value["moved"], expected["moved"], BASELINE_DISTANCE)
        expected = value
    changed = [
        f"{field}: recorded {expected.get(field)!r}, now {value.get(field)!r}"
        for field in {**expected, **value}
        if expected.get(field) != value.get(field)
    ]
    assert not changed, "\n".join([name, *changed])


def test_every_recorded_entry_is_checked():
    assert sorted(recorded()["entries"]) == sorted(ENTRIES)


def write(only):
    """Record the entries whose name contains a text; entries that are gone leave the file."""
    old = recorded() if only else {"made with": made_with(), "entries": {}}
    if old["made with"] != made_with():
        raise SystemExit(
            f"recorded with {old['made with']}, this is {made_with()}; leave --only out"
        )
    vars(worker_pool)["get_context"] = lambda method: CONTEXT
    entries = {}
    for name, make in ENTRIES.items():
        if only in name or name not in old["entries"]:
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                entries[name] = make()
            print(name, flush=True)
        else:
            entries[name] = old["entries"][name]
    text = ",\n".join(f"{json.dumps(n)}: {json.dumps(value)}" for n, value in entries.items())
    head = json.dumps(made_with())
    FILE.write_text(f'{{"made with": {head}, "entries": {{\n{text}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", required=True)
    parser.add_argument("--only", metavar="TEXT", default="", help="entries whose name contains it")
    write(parser.parse_args().only)
    sys.exit()
