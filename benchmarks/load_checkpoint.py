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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness.claims import PATIENCE_S, Claim, Sample, finish, flags
from harness.machine import LoadWatch, own_cpu_s, wait_until_quiet

from mlxhog.files import mapped, tensors
from mlxhog.files.quantities import format_bytes
from mlxhog.models import families
from mlxhog.models.xlstm_large import XLSTMLargeConfig

PROGRAM = Path(__file__).parent / "language_models" / "load_programs.py"
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
        entries[name] = tensors.Entry(spec.shape, dtype, parts)
    for _ in tensors.write_entries(folder / "model.safetensors", entries):
        pass
    (folder / "config.json").write_text(json.dumps(model.to_dict()))


def measure(row: str, folder: Path) -> dict[str, float]:
    """Run one row in a process of its own."""
    command = [sys.executable, str(PROGRAM)]
    ended = subprocess.run(
        [*command, row, str(folder)], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"{row} failed:\n{ended.stderr}")
    numbers: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return numbers


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
    chosen = parser.parse_args()
    model = sized((256 << 20) if chosen.quick else (2 << 30))
    weights = 4 * families.param_count(model)
    turns: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        folders = {name: Path(scratch) / name for name in set(PROGRAMS.values())}
        for name, folder in folders.items():
            make(folder, model, np.dtype(np.float32) if name == "float32" else mapped.BFLOAT16)
        for row, name in PROGRAMS.items():
            measure(row, folders[name])  # warm up: bytecode and page cache
        wait_until_quiet(PATIENCE_S[chosen.quick])
        watch, cpu = LoadWatch(), own_cpu_s()
        for _ in range(3 if chosen.quick else 5):
            turns.append({row: measure(row, folders[name]) for row, name in PROGRAMS.items()})
        others = watch.stop(own_cpu_s() - cpu)
        digest = digest_s(folders["float32"] / "model.safetensors")
    claims = []
    print(f"{format_bytes(weights)} of weights in float32, {len(turns)} turns\n")
    print(f"{'':28}{'seconds':>9}{'of safetensors':>16}{'memory beside imports':>24}")
    rows: dict[str, Any] = {}
    for row in PROGRAMS:
        seconds = Sample.of([turn[row]["seconds"] for turn in turns])
        memory = statistics.median(turn[row]["most"] - turn[row]["before"] for turn in turns)
        rows[row] = {"seconds": seconds, "memory_of_weights": memory / weights}
        ratio = ""
        if row in RATIOS:
            of = statistics.median(
                turn[row]["seconds"] / turn[RATIOS[row]]["seconds"] for turn in turns
            )
            rows[row]["time_of_safetensors"] = of
            ratio = f"{of:.2f}"
            claims.append(Claim(f"{row}: time of {RATIOS[row]}", of, "<=", MOST_TIME))
        if row.startswith("ours"):
            share = memory / weights
            claims.append(
                Claim(f"{row}: memory of the weights", share, "<=", MOST_MEMORY, timing=False)
            )
        print(f"{row:28}{seconds.median:9.3f}{ratio:>16}{memory / weights:23.2f}x")
    print(f"{'SHA-256 of the file':28}{digest:9.3f}")
    return finish(
        "load_checkpoint",
        claims,
        others_load=others,
        results={"weights_bytes": weights, "rows": rows, "sha256_seconds": digest},
        packages=("mlxhog", "safetensors", "torch", "mlx", "numpy", "ml_dtypes"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
