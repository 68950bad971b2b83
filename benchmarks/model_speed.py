"""Speed of one worker beside the xlstm package and transformers: training and decoding.

    python benchmarks/model_speed.py                     every row, both thread counts
    python benchmarks/model_speed.py --quick             fewer turns
    python benchmarks/model_speed.py --only v1 decode    some of: train v1 decode

Ours and the peers take turns, each in a process of its own with the same threads; a ratio is the
geometric mean of the turns' own ratios, so that a slow spell of the machine hits both sides. Ours
does all that a run does in a step (`language_models/ours.py`), a peer only what training needs
(`language_models/peers.py`).
"""

from dataclasses import replace

from harness.estimates import Mean, Ratio
from harness.frame import each, run
from harness.interleaved import Program, in_turns
from harness.machine import smallest
from language_models.ours import SMALL, TOKENS, Size

OURS, PEERS = "language_models.ours", "language_models.peers"
TORCH, MLX, PACKAGE, TRANSFORMERS = "ours, torch", "ours, mlx", "xlstm", "transformers"
WIDE = Size(d=512, blocks=6, batch=2)
VOCABULARY = replace(WIDE, vocab=50_304)
SEVEN_TO_ONE = Size(blocks=8, slstm_at=(1,))


def compare(findings, chosen, row, programs, tokens, threads, limits):
    """Let programs take turns; print and keep their tokens per second, and claim ratios.

    Args:
        findings: get all of it.
        chosen: the flags.
        row: its name in the table.
        programs: by name; all work through the same tokens.
        tokens: in one step.
        threads: of each.
        limits: (slow, fast) -> how many times as fast the second is to be.
    """
    how = (5, 0.4) if chosen.quick else (9, 1.0)
    seconds, again = in_turns(programs, threads=threads, turns=how[0], seconds=how[1])
    first, row = next(iter(programs)), f"{row}, threads {threads}"
    findings.same(f"{row}: {first}, seconds of a step", seconds[first], again)
    findings.table([
        {"row": row, **{name: Mean.of(tokens / s for s in own).spelt(",.0f")
                        for name, own in seconds.items()}}
    ])  # fmt: skip
    for (slow, fast), least in limits.items():
        findings.at_least(f"{row}: {fast} / {slow}", Ratio.of(seconds[slow], seconds[fast]), least)


def programs_of(size, names):
    """Training steps of a size, by the names of the programs."""
    every = {
        TORCH: Program(OURS, "training_step", {"size": size, "backend": "torch:cpu"}),
        MLX: Program(OURS, "training_step", {"size": size, "backend": "mlx:cpu"}),
        **{peer: Program(PEERS, "training_step", {"size": size, "peer": peer})
           for peer in (PACKAGE, TRANSFORMERS)},
    }  # fmt: skip
    return {name: every[name] for name in names}


def train(findings, chosen):
    """Training steps of xLSTM Large at three sizes."""
    sizes = (SMALL, 1.4), (WIDE, 1.05), (VOCABULARY, 1.5)
    for size, least in smallest(sizes[:1], sizes):
        for threads in smallest(chosen.threads[:1], chosen.threads):
            programs = programs_of(size, (TORCH, MLX, PACKAGE, TRANSFORMERS))
            limits = {(PACKAGE, TORCH): least, (TRANSFORMERS, TORCH): least, (TORCH, MLX): 0.5}
            compare(findings, chosen, size.name, programs, size.tokens, threads, limits)


def v1(findings, chosen):
    """Training steps of seven mLSTM blocks and one sLSTM block."""
    size, limits = SEVEN_TO_ONE, {(PACKAGE, TORCH): 3.0, (TORCH, MLX): 0.5}
    for threads in smallest(chosen.threads[:1], chosen.threads):
        programs = programs_of(size, (TORCH, MLX, PACKAGE))
        compare(findings, chosen, size.name, programs, size.tokens, threads, limits)


STREAMS = {
    TORCH: Program(OURS, "stream", {"backend": "torch:cpu"}),
    MLX: Program(OURS, "stream", {"backend": "mlx:cpu"}),
    PACKAGE: Program(PEERS, "stream", {"peer": PACKAGE}),
    TRANSFORMERS: Program(PEERS, "stream", {"peer": TRANSFORMERS}),
}


def decode(findings, chosen):
    """One stream of xLSTM Large, greedily, one thread."""
    row = f"decoding one stream, d {SMALL.d} x {SMALL.blocks}"
    limits = {(PACKAGE, TORCH): 2.0, (TRANSFORMERS, TORCH): 2.0}
    compare(findings, chosen, row, STREAMS, TOKENS, 1, limits)


PARTS = {one.__name__: one for one in (train, v1, decode)}


if __name__ == "__main__":
    run(
        __doc__, each(PARTS), only=PARTS, modes={"quick": "fewer and shorter turns"},
        options={
            "--threads": {
                "type": int, "nargs": "+", "default": [1, 2], "help": "of training steps"
            },
        },
        packages=("torch", "mlx", "xlstm", "mlstm_kernels", "transformers"), quiet=True,
    )  # fmt: skip
