"""The runs of mlxhog 0.2 in tests/golden/runs_0_2, and how they were made.

    python -m tests.training.stored_runs FOLDER

trains every run again, in minutes, and keeps the files that `--resume` reads. The stored runs are
of version 0.2.0; runs of another version have its format and must not replace them.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

STORED = Path(__file__).parents[1] / "golden" / "runs_0_2"

COMMON = """
--data text.jsonl --model tiny
--set hidden_size=2,num_hidden_layers=1,num_heads=1,ffn_round_up_to_multiple_of=8,vocab_size=257
--seq-len 16 --batch-size 1 --threads 1 --steps 2 --eval-tokens 64
--eval-every off --sample-every off --save-every off --keep-last 1
"""

SAMPLES = {
    "serial": "--strategy serial --predict own --workers torch:cpu "
    "--optimizer adan --beta3 0.8 --schedule constant --warmup 0.1",
    "hogwild": "--strategy hogwild --predict last --lr-workers sqrt --workers mlx:cpu*2 "
    "--optimizer muon --nesterov 0.15 --orthogonalization ns5 --orthogonalization-rows 2 "
    "--orthogonalization-every 3 --orthogonalization-dtype float32 "
    "--schedule backoff --backoff-steps 5 --backoff-beta 0.5",
    "sync": "--strategy sync --backup-workers 1 --workers mlx:cpu*2 "
    "--optimizer adamw --beta1 0.8 --beta2 0.99 --eps 1e-6 "
    "--schedule cosine --warmup 0.05 --lr-floor 0.2",
    "round_robin": "--strategy round_robin --delay-feedback --lr-workers linear "
    "--workers mlx:cpu*2 --optimizer momentum --momentum 0.5 "
    "--schedule wsd --warmup 0.1 --lr-floor 0.3",
    "ssp": "--strategy ssp --slack 2 --slack-notice 5 --workers mlx:cpu*2 "
    "--optimizer apollo --projection-rank 2 --projection-scale 3 --projection-every 5 "
    "--projection-compat official --schedule inverse --backoff-steps 7",
    "async_ps": "--strategy async_ps --staleness-lr exp:0.9 --workers mlx:cpu*2 "
    "--optimizer sgd --lr 0.01 --weight-decay 0.2 --schedule backoff --backoff-epochs 2",
    "locked": "--strategy locked --lock-scope apply --delay-compensation adaptive:0.1 "
    "--workers mlx:cpu*2 --optimizer soap --precondition-every 3 --beta2-half-life 10000",
    "aig": "--strategy aig --rescale-by-speed --workers mlx:cpu*2 "
    "--optimizer apollo-mini --projection-scale 3 --projection-every 7",
    "sim": "--strategy sim --sim-staleness uniform:0:2 --sim-workers 2 --workers torch:cpu "
    "--optimizer adamw --eps 1e-7 --staleness-lr linear:0.5",
    "local_sgd": "--strategy local_sgd --average-every 1 --local-after 1 --inner-state average "
    "--workers mlx:cpu*2 --optimizer adamw --weight-decay 0.05",
    "fedprox": "--strategy fedprox --prox-mu 0.5 --prox decoupled --average-every 1 "
    "--workers mlx:cpu*2 --optimizer sgd --clip 0.2",
    "scaffold": "--strategy scaffold --local-work 1,1 --inner-state reset "
    "--workers mlx:cpu*2 --optimizer momentum --momentum 0.8",
    "diloco": "--strategy diloco --replicas 2 --outer-lr 0.5 --outer-momentum 0.8 "
    "--average-every 1 --workers mlx:cpu*2 --optimizer lion --beta1 0.85 --beta2 0.9",
    "avg_runs": "--strategy avg_runs --split dirichlet --split-alpha 0.5 --split-by part "
    "--clients 2 --workers mlx:cpu*2 --optimizer muon",
    "shared-moments": "--strategy hogwild --moments shared --staleness-lr linear:0.5 "
    "--workers mlx:cpu*2 --optimizer adamw --beta1 0.8",
    "sparse": "--strategy hogwild --sparsify topk:0.2 --error-feedback false "
    "--workers mlx:cpu*2 --optimizer sgd",
    "disjoint": "--strategy hogwild --blocks disjoint --rotate-every 7 --workers mlx:cpu*2 "
    "--optimizer lion",
    "sync-then-hogwild": "--strategy hogwild --async-after 0.5 --sync-shares speed "
    "--workers mlx:cpu*2 --optimizer muon",
    "feedback": "--strategy hogwild --delay-feedback --workers mlx:cpu*2 --optimizer sgd",
    "all-open": "--workers mlx:cpu*2",
}
"""Name of a stored run -> the flags of its command beside `COMMON`."""


def make(name: str, out: Path) -> None:
    """Train a sample, and keep the files that `--resume` reads, without logs, times and machine."""
    words = [*shlex.split(COMMON), *shlex.split(SAMPLES[name]), "--name", name, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mlxhog", "train", *words, "--out", "runs", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        cwd=out,
    )
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr}")
    run, kept = Path(json.loads(done.stdout)["run"]), out / name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    shutil.copy(run / "config.yaml", kept)
    shutil.copytree(run / "checkpoints", kept / "checkpoints")
    status = json.loads((run / "run.json").read_text())
    portable = {key: status[key] for key in ("status", "mlxhog", "automatic")}
    (kept / "run.json").write_text(json.dumps(portable, indent=1) + "\n")
    shutil.rmtree(run)


def main() -> None:
    """Make every run, or those that the arguments after the folder name."""
    out, *names = sys.argv[1:]
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if folder != STORED:
        shutil.copy(STORED / "text.jsonl", folder)
    for name in names or SAMPLES:
        make(name, folder)
        print(f"{name}: made by mlxhog {version('mlxhog')}", flush=True)
    (folder / "runs").rmdir()


if __name__ == "__main__":
    main()
