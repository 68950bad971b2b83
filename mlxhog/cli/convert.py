"""`mlxhog convert`: a checkpoint in another format."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes, format_count, parse_bytes
from mlxhog.cli.flags import Plugins, Quiet, RunFolder
from mlxhog.cli.frame import Report, command, written
from mlxhog.config.options import argument, option, switch
from mlxhog.report.views import StatusLine

if TYPE_CHECKING:
    from mlxhog.checkpoint.formats import Opened

TOKENS = 64  # random ones, of --check
ROUNDING = 1e-4
"""Of the largest logit: the possible effect of another order of the same sums."""


@dataclass(frozen=True, kw_only=True)
class _Words(RunFolder, Plugins, Quiet):
    source: str = argument("SRC", "a run, latest, or a checkpoint's path")
    target: str = argument("DST", "the directory to create")
    check: bool = switch("compute with both, and compare the logits")
    to: str = option(
        "", "hf: for transformers; xlstm: a state dict of the xlstm package; mlxhog: ours",
        choices=("hf", "xlstm", "mlxhog"), required=True,
    )  # fmt: skip
    dtype: str = option(
        "keep", "type of the weights", choices=("keep", "float32", "bfloat16", "float16")
    )
    shard_size: str = option("5GB", "most bytes of tensors in one file", reads=parse_bytes)
    config: str | None = option(None, "config of SRC, if it is in another place")
    fused: bool = option(False, "stack weights that share their input (--to xlstm, xLSTM Large)")
    slstm: str = option(
        "vanilla", "layout of sLSTM cells (--to xlstm, v1)", choices=("vanilla", "cuda")
    )
    force: bool = option(False, "replace an existing checkpoint at DST")


@command("convert")
def run(config: _Words) -> Report:
    """Write a checkpoint in another format.

    SRC may be a run, `latest`, a checkpoint of mlxhog, a directory of transformers (such as
    NX-AI/xLSTM-7b), or a state dict of the xlstm package, of xLSTMLarge or of xLSTMLMModel, as
    .safetensors or torch file; the format is detected. Only --dtype changes the numbers, and a
    model of any size needs little memory.

    Examples:
        convert latest exported --to hf
        convert xLSTM-7b ours --to mlxhog --dtype bfloat16
        convert model.pt for-transformers --config config.yaml --to hf
        convert ours for-the-package --to xlstm --check
    """
    # These import NumPy: wrong input is reported before.
    from mlxhog.checkpoint import checkpoint, formats
    from mlxhog.checkpoint.formats.converting import Conversion, convert
    from mlxhog.checkpoint.formats.opening import TITLES
    from mlxhog.checkpoint.formats.saving import check_target

    target = expanded(config.target)
    check_target(target, force=config.force)
    source = formats.open(checkpoint.locate(config.source, Path(config.out)), config.config)
    request = Conversion(
        to=config.to,
        dtype=None if config.dtype == "keep" else config.dtype,
        shard_bytes=parse_bytes(config.shard_size),
        fused=config.fused,
        slstm=config.slstm,
    )
    with StatusLine(sys.stderr, quiet=config.quiet or config.json) as line:

        def show(name: str, done: int, total: int) -> None:
            share = done / max(total, 1)
            line.show(f"{share:.0%}  {format_bytes(done)} of {format_bytes(total)}  {name}")

        card = _card(source, config)
        files = convert(source, target, request, card=card, force=config.force, on_tensor=show)
    count, n_bytes = sum(one.size for one in source.tensors.values()), sum(files.values())
    facts: dict[str, Any] = {
        "source": str(source.path),
        "from": source.format,
        "target": str(target.absolute()),
        "to": config.to,
        "family": source.config.model_type,
        "parameters": count,
        "tensors": len(source.tensors),
        "files": dict(files),
    }
    head = (
        f"{source.config.title}, {format_count(count)} parameters, {TITLES[source.format]} -> "
        f"{TITLES[config.to]}: {target}  {format_bytes(n_bytes)}, files: {len(files)}"
    )
    if not config.check:
        return Report(facts, head)
    largest, apart = _compare_logits(source, formats.open(target))
    facts["logits"] = {"tokens": TOKENS, "largest_difference": apart, "largest": largest}
    remarks = []
    if config.dtype == "keep" and apart > ROUNDING * largest:
        remarks = [
            f"{target} computes other logits than {source.path}: after {TOKENS} tokens the "
            f"largest logit is {largest:.3g} and the largest difference {apart:.2g}"
        ]
    return Report(facts, [head, {"logits": facts["logits"]}], len(remarks), remarks)


def _compare_logits(a: Opened, b: Opened) -> tuple[float, float]:
    """Compute with both models in float32, on the CPU with PyTorch.

    Returns:
        The largest logit of the first, and the largest difference of two logits.

    Raises:
        CheckpointError: tensors are not finite; names them.
        EnvironmentLacks: torch is not installed.
    """
    import numpy as np

    from mlxhog import backends
    from mlxhog.checkpoint.formats.opening import refuse_not_finite

    logits = []
    for one in (a, b):
        ids = np.random.default_rng(0).integers(0, one.config.vocab_size, (1, TOKENS), np.int32)
        backend = backends.create("torch:cpu", threads=1, kernels="auto", cpu_blas="auto")
        try:
            refuse_not_finite(backend.load(one.config, one.tensors), one.path)
            logits.append(backend.logits(ids, None)[0])
        finally:
            backend.close()
    return float(np.abs(logits[0]).max()), float(np.abs(logits[0] - logits[1]).max())


def _card(source: Opened, config: _Words) -> bytes:
    """The model card: that of the source, or one from the record of its run."""
    from mlxhog.base import reading
    from mlxhog.checkpoint.manifest import CARD, CARD_MARK
    from mlxhog.checkpoint.run import run_of
    from mlxhog.report import card

    checkpoint = source.path.resolve()
    if run_of(checkpoint) is None and (source.folder / CARD).is_file():
        content = reading.read_small(source.folder / CARD)
        return content if CARD_MARK in content else content + b"\n" + CARD_MARK
    command = f"mlxhog convert {written(config, leave_out=('json', 'quiet'))}"
    return card.text(source.config, checkpoint, to=config.to, command=command).encode()
