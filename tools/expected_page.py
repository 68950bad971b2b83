"""Write docs/generated/expected.md: memory, cost and roof of a step, by model, batch and chip.

python -m tools.expected_page
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxhog import TrainConfig, arena
from mlxhog.models import cells, families
from mlxhog.models.adapters import LoRA
from mlxhog.models.families import ModelConfig
from mlxhog.models.registry import architectures, load_architecture
from mlxhog.training.plan import roofline
from mlxhog.training.plan.adapter import base_bytes
from mlxhog.training.plan.memory import WORKER_BASE_BYTES, Memory
from mlxhog.training.plan.roofline import CHIPS, StepCost

PAGE = Path(__file__).resolve().parents[1] / roofline.PAGE
BATCHES = ((1, 512), (8, 512), (1, 2048), (8, 2048))  # sequences and tokens in each
RECOMPUTE = ({"recompute": "none"}, {"recompute": "blocks"})
"""Further arguments of the memory estimate, as {"recompute": "blocks"}; each has columns."""
HEAD = """# What to expect: computed, not measured

Nothing on this page ran on a Mac. `python -m tools.expected_page` computes it from the layers, the
memory estimate of a plan and Apple's numbers; do not edit it. `mlxhog train --dry-run` prints the
row of your machine, model, vocabulary and batch.
"""
MEMORY = """
## Memory and cost

Parameters have the preset's vocabulary, and no n-gram tables. GB are of one worker: snapshots,
gradients and what a gradient keeps for its backward pass. A run adds what workers share, 12 bytes
per parameter with AdamW and 8 for live readers, and 0.4 GB per worker. Multiply-adds and bytes are
of a step with 8 x 2,048 tokens.
"""
ADAPTERS = """
## Adapters

GB of a whole run with `--adapter`, AdamW, `--recompute blocks` and two workers of 1 x 1,024 tokens
each: the frozen base once, adapters with moments and snapshots for readers, and the workers.
"""
ADAPTED = ("160m", "400m", "830m", "1.3b", "2.7b", "7b")
RANKS, FORMATS, ADAPTER_WORKERS, ADAPTER_TOKENS = (8, 64), ("bfloat16", "4bit"), 2, 1024
ROOF = """
## Largest tokens/s of a GPU

Steps of one worker with 8 x 2,048 tokens in float32. This is a roof: a step takes at least as long
as its arithmetic at the GPU's peak, and as its memory traffic at full bandwidth. Kernels reach a
part of it, small models a small one, since launches take their time. No row says that a model fits
into a chip's memory; where only its batch does not, take `--grad-accumulation`.

- multiply-adds: one per weight and token, and those of the mLSTM cell in chunks; three times, for
  the backward pass has twice as many; the sLSTM's serial steps have no bound here
- bytes: {bytes} per parameter (gradient, snapshot, AdamW), and twice what is kept for the backward
  pass; the products of Muon are not counted
- bandwidth and GPU cores: Apple's newsroom and technical specifications, of the largest GPU of a
  chip
- peak: cores x 128 lanes x 2 x clock; Apple states no clocks, these are from
  github.com/philipturner/metal-benchmarks (M1, M2) and hmc-tech.com (M3 to M5), and other sources
  differ by up to a fifth; the tensor units of an M5 are not counted
"""


def text() -> str:
    """Return the page."""
    models = {name: load_architecture(name) for name in architectures()}
    models = {name: one for name, one in models.items() if not cells.not_counted(one)}
    models = dict(sorted(models.items(), key=lambda item: families.param_count(item[1])))
    roof = ROOF.format(bytes=roofline.BYTES_PER_PARAMETER)
    parts = HEAD, MEMORY, *_memory(models), ADAPTERS, *_adapters(models), roof, *_roof(models)
    return "".join(parts)


def _memory(models: dict[str, ModelConfig]) -> Iterator[str]:
    columns = ["model", "parameters"]
    for options in RECOMPUTE:
        how = options["recompute"].replace("none", "")
        columns += [f"{B} x {S:,} {how}".strip() for B, S in BATCHES]
        columns += [f"multiply-adds {how}".strip(), f"bytes {how}".strip()]
    yield from _table(columns, ([f"`{n}`", *_memory_row(one)] for n, one in models.items()))


def _memory_row(model: ModelConfig) -> Iterator[str]:
    yield f"{families.param_count(model) / 1e6:,.1f} M"
    for options in RECOMPUTE:
        for sequences, length in BATCHES:
            yield f"{memory(model, length, options).of_batch(sequences) / 1e9:.2f} GB"
        cost = step(model, options)
        yield f"{cost.multiply_adds / 1e12:,.2f} T"
        yield f"{cost.n_bytes / 1e9:,.1f} GB"


def memory(model: ModelConfig, length: int, options: dict[str, Any]) -> Memory:
    """Return the estimate of a run with one worker."""
    config = TrainConfig(seq_len=length)
    layout = arena.plan(families.trainable_spec(model), max_workers=1, n_tickets=1)
    return Memory(machine_bytes=0, part=1.0).with_gradients(
        config, model, layout, [("mlx", "metal")], **options
    )


def _adapters(models: dict[str, ModelConfig]) -> Iterator[str]:
    columns = ["base"]
    for rank in RANKS:
        columns += [f"trained, rank {rank}", *(f"{one}, rank {rank}" for one in FORMATS)]
    yield from _table(columns, ([f"`{name}`", *_adapter_row(models[name])] for name in ADAPTED))


def _adapter_row(model: ModelConfig) -> Iterator[str]:
    for rank in RANKS:
        adapted = replace(model, adapter=LoRA(rank=rank))
        trained = sum(one.size for one in families.trainable_spec(adapted).values())
        worker = memory(adapted, ADAPTER_TOKENS, RECOMPUTE[1]).of_batch(1) + WORKER_BASE_BYTES
        arena_bytes = 4 * trained * (3 + 2 * ADAPTER_WORKERS)  # with readers' copies, and moments
        yield f"{trained / 1e6:,.1f} M"
        for weights in FORMATS:
            n_bytes = base_bytes(adapted, weights) + arena_bytes + ADAPTER_WORKERS * worker
            yield f"{n_bytes / 1e9:.1f} GB"


def step(model: ModelConfig, options: dict[str, Any]) -> StepCost:
    """Return the cost of a step with the largest of `BATCHES`."""
    sequences, length = BATCHES[-1]
    kept_bytes = memory(model, length, options).kept_bytes(sequences)
    recomputed = options.get("recompute") == "blocks"
    return roofline.step_cost(model, sequences * length, kept_bytes, recomputed=recomputed)


def _roof(models: dict[str, ModelConfig]) -> Iterator[str]:
    costs = [step(model, RECOMPUTE[0]) for model in models.values()]
    rows = (
        [name.removeprefix("Apple "), f"{chip.gb_per_s:g}", f"{chip.flops / 1e12:.1f}"]
        + [_rounded(cost.max_tokens_per_s(chip)) for cost in costs]
        for name, chip in CHIPS.items()
    )
    yield from _table(["chip", "GB/s", "TFLOP/s", *(f"`{name}`" for name in models)], rows)


def _rounded(rate: float) -> str:
    """Return a rate with two digits, since a roof is no more precise."""
    return f"{float(f'{rate:.2g}'):,.0f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    yield from (f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
