"""The roof of a Mac's speed: the tokens/s that a GPU cannot exceed; computed, not measured.

A step takes at least as long as its arithmetic at the GPU's peak, and as its memory traffic at full
bandwidth (Williams et al. 2009, Roofline). The model of a step is

    multiply-adds   those of a forward pass (`mlxhog.models.cells`) three times, for the backward
                    pass has twice as many, but as many of a frozen weight, which has no gradient;
                    once more for blocks that are recomputed
    bytes           48 for each trained parameter: read by both passes, its gradient written; read
                    and written by a snapshot; parameter, gradient and two moments read by AdamW,
                    and three of them written. Frozen ones are read by both passes. Twice what a
                    gradient keeps for its backward pass

The time of cells that run position by position (sLSTM), launches, the products of Muon and the
tensor units of an M5 are not in it. Kernels reach a part of the roof.

A peak is GPU cores x 128 lanes x 2 x clock, in float32; bfloat16 is not faster outside of the
tensor units. Bandwidths and cores are Apple's for the largest GPU of a chip (newsroom and technical
specifications; the M1 has 128 bits of LPDDR4X-4266). Apple states no clocks: those of M1 and M2 are
from github.com/philipturner/metal-benchmarks, of M3 to M5 from hmc-tech.com, and other sources
differ by up to a fifth.
"""

from typing import Any, NamedTuple

from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.models import cells, families
from mlxhog.models.families import ModelConfig
from mlxhog.training.plan.values import TextPlan

BYTES_PER_PARAMETER = 48
PAGE = "docs/generated/expected.md"


class Chip(NamedTuple):
    """The largest GPU of a chip, and its memory."""

    gb_per_s: float
    cores: int
    ghz: float

    @property
    def flops(self) -> float:
        """Peak of float32 per second; a multiply-add is two."""
        return self.cores * 128 * 2 * self.ghz * 1e9


CHIPS = {
    "Apple M1": Chip(68.25, 8, 1.278),
    "Apple M1 Pro": Chip(200, 16, 1.296),
    "Apple M1 Max": Chip(400, 32, 1.296),
    "Apple M1 Ultra": Chip(800, 64, 1.296),
    "Apple M2": Chip(100, 10, 1.398),
    "Apple M2 Pro": Chip(200, 19, 1.398),
    "Apple M2 Max": Chip(400, 38, 1.398),
    "Apple M2 Ultra": Chip(800, 76, 1.398),
    "Apple M3": Chip(100, 10, 1.398),
    "Apple M3 Pro": Chip(150, 18, 1.398),
    "Apple M3 Max": Chip(400, 40, 1.398),
    "Apple M3 Ultra": Chip(819, 80, 1.398),
    "Apple M4": Chip(120, 10, 1.47),
    "Apple M4 Pro": Chip(273, 20, 1.47),
    "Apple M4 Max": Chip(546, 40, 1.678),
    "Apple M5": Chip(153, 10, 1.74),
    "Apple M5 Pro": Chip(307, 20, 1.74),
    "Apple M5 Max": Chip(614, 40, 1.74),
}


class StepCost(NamedTuple):
    """What a step of one worker computes and moves."""

    tokens: int
    multiply_adds: int
    n_bytes: int

    def max_tokens_per_s(self, chip: Chip) -> float:
        """Return the roof on a chip."""
        seconds = max(2 * self.multiply_adds / chip.flops, self.n_bytes / (1e9 * chip.gb_per_s))
        return self.tokens / seconds


def step_cost(
    model: ModelConfig, tokens: int, kept_bytes: int, *, classes: int | None = None,
    recomputed: bool = False, base_bytes: int = 0,
) -> StepCost:  # fmt: skip
    """Return the cost of a step whose gradient keeps so many bytes for its backward pass.

    `classes` of the vocabulary have a logit; None is all. The head is not recomputed. Frozen
    parameters have `base_bytes`.
    """
    forward = cells.multiply_adds(model, classes)
    again = cells.multiply_adds(model, 0) if recomputed else 0
    multiply_adds = (1 + cells.BACKWARD) * forward - _frozen_products(model, classes) + again
    trained = sum(
        one.size for one in families.trainable_spec(model).values() if one.kind != "table"
    )
    n_bytes = BYTES_PER_PARAMETER * trained + 2 * base_bytes + 2 * kept_bytes
    return StepCost(tokens, tokens * multiply_adds, n_bytes)


def _frozen_products(model: ModelConfig, classes: int | None) -> int:
    """Return the multiply-adds of a token by frozen weights, as `cells.multiply_adds` counts."""
    count, first, last = 0, families.embedding(model), families.head(model)
    for name in families.frozen_names(model):
        one = model.layout.spec[name]
        if name == last:
            count += (model.vocab_size if classes is None else classes) * model.hidden_size
        elif name != first and one.kind != "table" and len(one.shape) > 1:
            count += one.size
    return count


def expected(plan: TextPlan, chip_name: str) -> dict[str, float | str | None]:
    """Return the cost of a step of one worker, and the roof of this machine's GPU.

    Without a GPU worker, and on a chip that is not in `CHIPS`, the roof is not known.
    """
    config, model = plan.config, plan.model
    tokens = config.sequences_per_ticket * config.seq_len
    kept_bytes = config.grad_accumulation * plan.memory.kept_bytes(config.micro_batch)
    classes = None
    if plan.sampled is not None:
        # Each micro-batch draws its own.
        own = plan.sampled.negatives + config.micro_batch * config.seq_len
        classes = min(model.vocab_size, own)
    how: dict[str, Any] = {"classes": classes, "recomputed": config.recompute == "blocks"}
    cost = step_cost(model, tokens, kept_bytes, base_bytes=plan.memory.base_bytes, **how)
    on_gpu = any(worker.backend in GPU_BACKENDS for worker in plan.workers)
    chip = CHIPS.get(chip_name) if on_gpu else None
    if chip is None:
        why = chip_name or "a chip without a name" if on_gpu else "no worker uses a GPU"
        said = f"not known for this machine ({why}); {PAGE} has M1 to M5"
    else:
        said = (
            f"roofline of the largest GPU of an {chip_name}, {chip.gb_per_s:g} GB/s and "
            f"{chip.flops / 1e12:.3g} TFLOP/s: computed, not measured"
        )
    if missing := cells.not_counted(model):
        said += f"; without what mixes positions in {', '.join(missing)}"
    return {
        "step_multiply_adds": cost.multiply_adds,
        "step_bytes": cost.n_bytes,
        "max_tokens_per_s": None if chip is None else cost.max_tokens_per_s(chip),
        "max_tokens_per_s_from": said,
    }
