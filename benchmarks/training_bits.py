"""With which bits do trainings end? SHA-256 of the parameters, before and after a change.

    python benchmarks/training_bits.py > before.jsonl
    python benchmarks/training_bits.py --compare before.jsonl

Every strategy with AdamW, every optimizer, every schedule, with the defaults and with numbers of
their own. Strategies that repeat have two workers and `--determinism rounds`; those whose order is
decided by timing have one, with which they repeat as well. Every other arm computes with torch:cpu,
the others with mlx:cpu. One JSON line for each; the exit code is 1 where one differs from FILE, is
not in it, or failed. The hashes depend on the machine and the versions of its packages, so FILE has
to be of the same ones. Takes about ten minutes on two idle cores.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from harness.claims import flags, measured
from harness.machine import smallest

from mlxhog.checkpoint import checkpoint

COMMON = """
--model tiny --set hidden_size=32,num_hidden_layers=2,num_heads=2 --seq-len 32 --batch-size 2
--threads 1 --steps 8 --eval-every off --sample-every off --save-every off 
--live off --json --quiet
"""

ROUNDS = (
    "sync",
    "sync --grad-accumulation 2",
    "round_robin",
    "round_robin --lr-workers sqrt",
    "round_robin --predict last --moments shared",
    "round_robin --delay-feedback",
    "avg_runs",
    "avg_runs --split dirichlet --split-alpha 0.5 --split-by part",
    "local_sgd --average-every 2",
    "local_sgd --average-every 2 --local-after 3 --inner-state average",
    "fedprox --average-every 2",
    "fedprox --average-every 2 --prox-mu 0.5 --prox decoupled",
    "scaffold --average-every 2",
    "scaffold --local-work 2,1 --inner-state reset",
    "diloco --average-every 2",
    "diloco --average-every 2 --outer-lr 0.5 --outer-momentum 0.8",
)
"""Strategies with two workers, which repeat whatever timing does."""

ALONE = (
    "serial",
    "serial --predict own",
    "serial --sparsify topk:0.2",
    "serial --sparsify threshold:0.5 --error-feedback false",
    "sim",
    "sim --sim-staleness uniform:0:3 --sim-workers 3",
    "sim --sim-staleness speed:1,1,4 --lr-workers linear",
    "sim --sim-staleness fixed:3 --staleness-lr linear:0.5",
    "sim --sim-staleness fixed:3 --staleness-lr delay_adaptive",
    "sim --sim-staleness fixed:3 --delay-compensation adaptive:0.1",
    "sim --sim-staleness fixed:3 --delay-feedback",
    "hogwild",
    "hogwild --predict own",
    "hogwild --moments shared",
    "hogwild --moments shared --predict last",
    "hogwild --blocks disjoint --rotate-every 2",
    "hogwild --async-after 0.5",
    "async_ps",
    "async_ps --staleness-lr exp:0.9",
    "ssp",
    "ssp --slack 2",
    "locked",
    "locked --lock-scope apply --delay-compensation constant:0.1",
    "aig",
    "aig --rescale-by-speed",
)
"""Strategies with one worker."""

OPTIMIZERS = (
    "adamw --beta1 0.8 --beta2 0.99 --eps 1e-6 --weight-decay 0.05",
    "adamw --beta2-half-life 1000",
    "adan",
    "adan --beta1 0.8 --beta2 0.9 --beta3 0.8 --eps 1e-6",
    "apollo",
    "apollo --projection-rank 2 --projection-scale 3 --projection-every 3",
    "apollo --projection-compat official",
    "apollo-mini",
    "apollo-mini --projection-scale 3 --projection-every 3",
    "lion",
    "lion --beta1 0.85 --beta2 0.9",
    "momentum",
    "momentum --momentum 0.5 --weight-decay 0.2",
    "muon",
    "muon --nesterov 0.15 --beta1 0.8 --eps 1e-6",
    "muon --orthogonalization ns5 --orthogonalization-dtype float32",
    "muon --orthogonalization-rows 8 --orthogonalization-every 3",
    "sgd",
    "sgd --weight-decay 0.2 --clip 0",
    "soap",
    "soap --precondition-every 3 --beta2-half-life 1000",
)
"""Optimizers, in a run of one worker; AdamW by itself is `serial`."""

SCHEDULES = (
    "constant",
    "constant --warmup 0.5",
    "cosine --warmup 0.3 --lr-floor 0.3",
    "wsd",
    "wsd --warmup 0.3 --lr-floor 0.5",
    "inverse",
    "inverse --backoff-steps 3",
    "backoff",
    "backoff --backoff-steps 3 --backoff-beta 0.5",
    "backoff --backoff-epochs 1",
)
"""Schedules, in a run of one worker with AdamW; cosine by itself is `serial`."""


def arms() -> Iterator[tuple[str, str]]:
    """The name of every arm, which is what it chooses, and its other flags."""
    for choice in ROUNDS:
        yield f"--strategy {choice}", "2 --optimizer adamw --determinism rounds"
    for choice in ALONE:
        yield f"--strategy {choice}", "1 --optimizer adamw"
    for choice in OPTIMIZERS:
        yield f"--optimizer {choice}", "1 --strategy serial"
    for choice in SCHEDULES:
        yield f"--schedule {choice}", "1 --strategy serial --optimizer adamw"
    yield "--strategy sync --optimizer muon", "2 --determinism rounds"
    yield "--strategy hogwild --optimizer muon", "1"
    yield "--strategy sim --sim-staleness fixed:3 --optimizer muon", "1"
    yield "--strategy sim --sim-staleness fixed:3 --optimizer lion", "1"


def trained(arm: str, others: str, backend: str, out: str) -> dict[str, str]:
    """Train an arm in processes of its own; returns its JSON line."""
    workers, *flags = others.split()
    words = [*arm.split(), *flags, "--workers", f"{backend}*{workers}", "--out", out]
    done = subprocess.run(
        [sys.executable, "-m", "mlxhog", "train", *COMMON.split(), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    line = {"arm": arm, "backend": backend}
    if done.returncode != 0:
        return {**line, "error": done.stderr.strip() or f"exit {done.returncode}"}
    params = checkpoint.load(Path(json.loads(done.stdout)["checkpoint"])).params
    sha256 = hashlib.sha256()
    for name, values in sorted(params.items()):
        sha256.update(name.encode() + b"\0" + values.tobytes())
    return {**line, "sha256": sha256.hexdigest()}


def main() -> int:
    """Train the arms, print their hashes, and compare."""
    parser = flags(__doc__)
    parser.add_argument("--compare", metavar="FILE", help="output of an earlier call")
    parser.add_argument("--only", metavar="TEXT", default="", help="arms whose name has this text")
    chosen = parser.parse_args()
    earlier = {}
    if chosen.compare is not None:
        lines = map(json.loads, Path(chosen.compare).read_text().splitlines())
        earlier = {line["arm"]: line for line in lines}
    compared = different = 0
    with tempfile.TemporaryDirectory() as out:
        for k, (arm, others) in enumerate(islice(arms(), smallest(2, None))):
            if chosen.only not in arm:
                continue
            line = trained(arm, others, ("torch:cpu", "mlx:cpu")[k % 2], out)
            print(json.dumps(line), flush=True)
            compared += 1
            if "error" in line or (chosen.compare is not None and earlier.get(arm) != line):
                different += 1
                before = earlier.get(arm, {}).get("sha256", "nothing")
                print(f"DIFFERS: {arm}: {before} before", file=sys.stderr, flush=True)
    if chosen.compare is not None:
        print(f"{compared - different} of {compared} arms end as before", file=sys.stderr)
    if chosen.tiny:
        return measured("training_bits", chosen, lambda findings, chosen: None)
    return 1 if different or not compared else 0


if __name__ == "__main__":
    raise SystemExit(main())
