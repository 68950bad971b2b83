"""Time and memory of loading a checkpoint, beside those of safetensors.

    python benchmarks/load_checkpoint.py            2 GiB of float32 weights, five turns
    python benchmarks/load_checkpoint.py --quick    256 MiB, three turns

The checkpoints are made first, in a directory of their own (--folder), and lie in the page cache:
what is compared is the work of the processor. Each load is a process of its own, in turns; its time
runs from the path to weights whose every number has been read, and in ours also checked. A ratio is
the median of the turns' own ratios; memory counts from what the imports need.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from harness.claims import Findings, Sample, flags, measured
from harness.estimates import Ratio
from harness.interleaved import Program, once, take_turns, with_twin
from harness.machine import LoadWatch, wait_until_quiet
from language_models.load_programs import Loaded

from mlxhog.files import mapped, tensors
from mlxhog.files.quantities import format_bytes
from mlxhog.models import families
from mlxhog.models.xlstm_large import XLSTMLargeConfig

LOAD = "language_models.load_programs"
PROGRAMS = {
    "safetensors_numpy": "float32",
    "ours_mlx": "float32",
    "safetensors_torch": "float32",
    "ours_torch": "float32",
    "safetensors_torch_converted": "bfloat16",
    "ours_torch_converted": "bfloat16",
}
"""Row -> the checkpoint it loads; weights are held in float32 by all."""

RATIOS = {
    "ours_mlx": "safetensors_numpy",
    "ours_torch": "safetensors_torch",
    "ours_torch_converted": "safetensors_torch_converted",
}
"""Row of ours -> what it is compared with: a copy, a mapping that is read, a conversion."""

MOST_TIME, MOST_MEMORY = 1.3, 1.1


def sized(weights_bytes: int) -> XLSTMLargeConfig:
    """The model of about so many bytes of float32: d 1024, or 512 for a quick look."""
    d, vocab = (1024, 50304) if weights_bytes > 1 << 30 else (512, 8192)
    one, two = (
        XLSTMLargeConfig(vocab_size=vocab, hidden_size=d, num_hidden_layers=n, num_heads=4)
        for n in (1, 2)
    )
    block = families.param_count(two) - families.param_count(one)
    layers = 1 + round((weights_bytes / 4 - families.param_count(one)) / block)
    return XLSTMLargeConfig(vocab_size=vocab, hidden_size=d, num_hidden_layers=layers, num_heads=4)


def make(folder: Path, model: XLSTMLargeConfig, dtype: np.dtype[Any]) -> None:
    """Write a directory of transformers with random weights."""
    folder.mkdir()
    random = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(dtype)
    entries = {}
    for name, spec in families.param_spec(model).items():
        whole, rest = divmod(spec.size, random.size)
        parts = (random,) * whole + ((random[:rest],) if rest else ())
        entries[name] = tensors.TensorSource(spec.shape, dtype, parts)
    for _ in tensors.write_entries(folder / "model.safetensors", entries):
        pass
    (folder / "config.json").write_text(json.dumps(model.to_dict()))


def digest_s(file: Path) -> float:
    """Seconds that SHA-256 takes, which training checks when it resumes and generation does not."""
    start = time.perf_counter()
    with file.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")
    return time.perf_counter() - start


def main() -> int:
    """Measure."""
    parser = flags(__doc__, quick="256 MiB and three turns")
    parser.add_argument("--folder", help="where the checkpoints are made [the temporary directory]")
    packages = ("safetensors", "torch", "mlx", "ml_dtypes")
    return measured("load_checkpoint", parser.parse_args(), measure, packages=packages)


def measure(findings: Findings, chosen: Namespace) -> None:
    """Make the checkpoints, load them in turns, compare."""
    model = sized((256 << 20) if chosen.quick else (2 << 30))
    weights = 4 * families.param_count(model)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        folders = {name: Path(scratch) / name for name in set(PROGRAMS.values())}
        for name, folder in folders.items():
            make(folder, model, np.dtype(np.float32) if name == "float32" else mapped.BFLOAT16)

        def load(row: str, turn: int) -> Loaded:
            options = {"program": row, "folder": folders[PROGRAMS[row]]}
            loaded: Loaded = once(Program(LOAD, "loaded", options), threads=1)
            return loaded

        take_turns((0,), PROGRAMS, load)  # warm up: bytecode and page cache
        wait_until_quiet(10.0 if chosen.quick else 60.0)
        watch = LoadWatch()
        count, twin = 3 if chosen.quick else 5, next(iter(PROGRAMS))
        turns, again = with_twin(range(count), PROGRAMS, load, twin=twin)
        findings.others_load = watch.stop()
        digest = digest_s(folders["float32"] / "model.safetensors")
    times = {row: [one.seconds for one in own] for row, own in turns.items()}
    findings.same(f"{twin}, seconds", times[twin], [one.seconds for one in again])
    print(f"{format_bytes(weights)} of weights in float32\n")
    print(f"{'':28}{'seconds':>9}{'of safetensors':>16}{'memory beside imports':>24}")
    rows: dict[str, Any] = {}
    for row, own in turns.items():
        seconds, ratio = Sample.of(times[row]), ""
        memory = Sample.of([one.most - one.before for one in own]).median / weights
        rows[row] = {"seconds": seconds, "memory_of_weights": memory}
        if row in RATIOS:
            of = Ratio.of(times[row], times[RATIOS[row]])
            rows[row]["time_of_safetensors"] = of
            ratio = f"{of.value:.2f}"
            findings.at_most(f"{row}: time of {RATIOS[row]}", of, MOST_TIME)
        if row.startswith("ours"):
            findings.at_most(f"{row}: memory of the weights", memory, MOST_MEMORY, timing=False)
        print(f"{row:28}{seconds.median:9.3f}{ratio:>16}{memory:23.2f}x")
    print(f"{'SHA-256 of the file':28}{digest:9.3f}")
    findings.results |= {"weights_bytes": weights, "rows": rows, "sha256_seconds": digest}


if __name__ == "__main__":
    raise SystemExit(main())
