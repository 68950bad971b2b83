"""One table, one run: every strategy trains the tiny xLSTM, and what comes of it.

    python benchmarks/strategies.py           three seeds, 300,000 tokens a run: 26 minutes
    python benchmarks/strategies.py --quick   one seed, 60,000 tokens a run
    python benchmarks/strategies.py --only local_sgd,diloco --workers 2

Model: `tiny`, bytes of the corpus sotu, S 256, 2 and 4 PyTorch workers with one thread each, Muon
at its own step size for the strategy. The columns:

    at equal gradients   held-out bits per byte when all have computed as many gradients
    at equal time        the same after as many seconds as the fastest run of that row of workers
    tok/s, staleness     of all workers, and the mean number of updates by others
    network              bytes that a network would have carried, each worker a machine of its own
    memory               proportional resident memory of all workers, shared pages divided

Ranges are over seeds. Settings are not searched for each strategy, so a difference of a few
hundredths says nothing of what it could do at its best (`unequal_workers.py` searches). A row is
added by a line of `STRATEGIES`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.claims import Claim, Findings, Sample, flags, measured
from harness.machine import smallest
from training.recording import BYTES, HeldOut, Recorded, record

from mlxhog import TrainConfig
from mlxhog.files.quantities import format_bytes

H = {"average_every": 8}
STRATEGIES: dict[str, dict[str, Any]] = {
    "hogwild": {"strategy": "hogwild"},
    "sync": {"strategy": "sync"},
    "sync, one backup": {"strategy": "sync", "backup_workers": 1},
    "round_robin": {"strategy": "round_robin"},
    "avg_runs": {"strategy": "avg_runs"},
    "local_sgd": {"strategy": "local_sgd", **H},
    "fedprox": {"strategy": "fedprox", **H},
    "scaffold": {"strategy": "scaffold", **H},
    "diloco": {"strategy": "diloco", **H},
    "diloco, one replica": {"strategy": "diloco", "replicas": 1, **H},
    "async_ps": {"strategy": "async_ps"},
    "ssp": {"strategy": "ssp"},
    "locked": {"strategy": "locked"},
    "aig": {"strategy": "aig"},
}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        tokens: of a run.
        seeds: of the runs.
        eval_tokens: held-out text of one evaluation.
    """

    tokens: int
    seeds: tuple[int, ...]
    eval_tokens: int


QUICK = Scale(60_000, (1,), 16_384)
FULL = Scale(300_000, (1, 2, 3), 65_536)


@dataclass(frozen=True)
class Row:
    """One strategy with so many workers, a value per seed."""

    at_gradients: list[float]
    at_time: list[float]
    tokens_per_s: list[float]
    staleness: list[float]
    network_bytes: list[float]
    memory_bytes: list[float]


def main() -> int:
    """Train, and print the table."""
    parser = flags(__doc__, quick="one seed, 60,000 tokens a run")
    parser.add_argument("--only", help="strategies of the table, with commas between them")
    parser.add_argument("--workers", type=int, action="append", help="2 and 4 by default")
    parser.add_argument("--tokens", type=int, help="of a run")
    chosen = parser.parse_args()
    chosen.names = chosen.only.split(",") if chosen.only else list(STRATEGIES)
    if unknown := [name for name in chosen.names if name not in STRATEGIES]:
        parser.error(f"no strategy {unknown[0]!r}; choose from {', '.join(STRATEGIES)}")
    return measured("strategies", chosen, measure, packages=("torch",), quiet=True)


def measure(findings: Findings, chosen: Namespace) -> None:
    """Train with every number of workers."""
    scale = QUICK if chosen.quick else FULL
    tokens, held_out = (
        chosen.tokens or scale.tokens,
        HeldOut(TrainConfig(**BYTES), scale.eval_tokens),
    )
    tables: dict[str, dict[str, Row]] = {}
    for workers in chosen.workers or smallest((2,), (2, 4)):
        runs = [
            {name: run(name, workers, seed, tokens) for name in chosen.names}
            for seed in scale.seeds
        ]
        tables[str(workers)] = table = rows(runs, held_out)
        show(table, workers)
    findings.claims += claims_of(tables)
    findings.results |= {"tokens": tokens, "tables": spelt(tables)}


def run(name: str, workers: int, seed: int, tokens: int) -> Recorded:
    """Train with a strategy, keeping the parameters of every moment."""
    recorded = record(
        keep_params=True, seed=seed, workers=f"torch:cpu*{workers}", threads=1, tokens=tokens,
        **STRATEGIES[name],
    )  # fmt: skip
    if recorded.result.status != "done":
        raise SystemExit(f"{workers} workers, {name}: the run ended {recorded.result.status}")
    print(f"  {workers} workers, {name}: {recorded.result.seconds:.1f} s", flush=True)
    return recorded


def rows(runs: Sequence[Mapping[str, Recorded]], held_out: HeldOut) -> dict[str, Row]:
    """The table's rows, from the runs of every seed."""
    table = {name: Row([], [], [], [], [], []) for name in runs[0]}
    for of_seed in runs:
        fastest_s = min(recorded.result.seconds for recorded in of_seed.values())
        for name, recorded in of_seed.items():
            row, result = table[name], recorded.result
            row.at_gradients.append(bits(held_out, recorded, result.seconds))
            row.at_time.append(bits(held_out, recorded, fastest_s))
            row.tokens_per_s.append(result.tokens_per_s)
            steps = sum(result.staleness.values())
            late = sum(tau * n for tau, n in result.staleness.items())
            row.staleness.append(late / max(1, steps))
            row.network_bytes.append(float(result.network_bytes))
            row.memory_bytes.append(float(recorded.pss_bytes))
    return table


def bits(held_out: HeldOut, recorded: Recorded, seconds: float) -> float:
    """Held-out bits per byte of the recorded parameters nearest to a moment."""
    point = min(recorded.points, key=lambda one: abs(one.seconds - seconds))
    assert point.params is not None
    return held_out.bits_per_byte(point.params)


def show(table: Mapping[str, Row], workers: int) -> None:
    """Print the table."""
    print(f"\n{workers} workers: median (range over seeds)")
    print(f"  {'':20} {'at equal gradients':>23} {'at equal time':>23} {'tok/s':>7} {'late':>5}"
          f" {'network':>9} {'memory':>9}")  # fmt: skip
    for name, row in table.items():
        losses = [Sample.of(v).spelt(".3f") for v in (row.at_gradients, row.at_time)]
        rest = [Sample.of(v).median for v in (row.tokens_per_s, row.staleness)]
        sizes = [
            format_bytes(int(Sample.of(v).median)) for v in (row.network_bytes, row.memory_bytes)
        ]
        print(f"  {name:20} {losses[0]:>23} {losses[1]:>23} {rest[0]:7.0f} {rest[1]:5.2f}"
              f" {sizes[0]:>9} {sizes[1]:>9}")  # fmt: skip


def claims_of(tables: Mapping[str, Mapping[str, Row]]) -> list[Claim]:
    """What must hold whatever the machine does."""
    claims = []
    for workers, table in tables.items():
        sent = {name: Sample.of(row.network_bytes).median for name, row in table.items()}
        if {"sync", "local_sgd"} <= sent.keys():
            name = f"{workers} workers: bytes of sync / local_sgd (H = {H['average_every']})"
            claims.append(Claim(name, sent["sync"] / sent["local_sgd"], ">=", 7.0, timing=False))
        if {"scaffold", "local_sgd"} <= sent.keys():
            ratio = sent["scaffold"] / sent["local_sgd"]
            claims.append(
                Claim(f"{workers} workers: scaffold / local_sgd", ratio, "<=", 2.0, False)
            )
        for name in ("sync", "local_sgd", "scaffold"):
            if name in table:
                late = max(table[name].staleness)
                claims.append(
                    Claim(f"{workers} workers: staleness of {name}", late, "==", 0.0, False)
                )
    return claims


def spelt(tables: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """The tables for the JSON line."""
    return {
        workers: {
            name: {field: Sample.of(values) for field, values in vars(row).items()}
            for name, row in table.items()
        }
        for workers, table in tables.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
