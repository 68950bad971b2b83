"""`mlxhog convert`: a checkpoint in another format."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes, format_count, parse_bytes
from mlxhog.cli.flags import Flags, RunFolder
from mlxhog.config.options import option
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.checkpoint.formats import Opened

ABOUT = """\
Write a checkpoint in another format. SRC may be a run, `latest`, a checkpoint of mlxhog, a
directory of transformers (such as NX-AI/xLSTM-7b), or a state dict of the xlstm package, of
xLSTMLarge or of xLSTMLMModel, as .safetensors or torch file; the format is detected. Only --dtype
changes the numbers, and a model of any size needs little memory."""
EXAMPLES = (
    "convert latest exported --to hf",
    "convert xLSTM-7b ours --to mlxhog --dtype bfloat16",
    "convert model.pt for-transformers --config config.yaml --to hf",
    "convert ours for-the-package --to xlstm --check",
)

SOURCE, TARGET = "SRC", "DST"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(RunFolder):
    """Options of `mlxhog convert`."""

    to: str | None = option(
        None,
        "hf: for transformers; xlstm: a state dict of the xlstm package; mlxhog: ours",
        choices=("hf", "xlstm", "mlxhog"),
    )
    dtype: str = option(
        "keep", "type of the weights", choices=("keep", "float32", "bfloat16", "float16")
    )
    shard_size: str = option("5GB", "most bytes of tensors in one file")
    config: str | None = option(None, "config of SRC, if it is in another place")
    fused: bool = option(False, "stack weights that share their input (--to xlstm, xLSTM Large)")
    slstm: str = option(
        "vanilla", "layout of sLSTM cells (--to xlstm, v1)", choices=("vanilla", "cuda")
    )
    force: bool = option(False, "replace an existing checkpoint at DST")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("convert", ABOUT, EXAMPLES, (SOURCE, TARGET))
    flags.argument("source", metavar=SOURCE, help="a run, latest, or a checkpoint's path")
    flags.argument("target", metavar=TARGET, help="the directory to create")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object instead of a line")
    flags.argument("--check", action="store_true", help="compute with both, and compare the logits")
    flags.quiet()
    parsed, config = flags.read(ConvertConfig, arguments)
    if config.to is None:
        raise ConfigError("--to is missing; say --to hf, --to xlstm or --to mlxhog")
    shard_bytes = _shard_bytes(config.shard_size)
    # These import NumPy: wrong input is reported before.
    from mlxhog.checkpoint import checkpoint, formats
    from mlxhog.checkpoint.formats.converting import Conversion, convert
    from mlxhog.checkpoint.formats.saving import check_target
    from mlxhog.report.views import BytesLine

    target = expanded(parsed.other.target)
    check_target(target, force=config.force)
    source = formats.open(checkpoint.locate(parsed.other.source, Path(config.out)), config.config)
    request = Conversion(
        to=config.to,
        dtype=None if config.dtype == "keep" else config.dtype,
        shard_bytes=shard_bytes,
        fused=config.fused,
        slstm=config.slstm,
    )
    with BytesLine(sys.stderr, quiet=parsed.other.quiet or parsed.other.json) as line:
        files = convert(
            source,
            target,
            request,
            card=_card(source, config.to, arguments),
            force=config.force,
            on_tensor=line,
        )
    record = _record(source, target, config.to, files)
    if not (parsed.other.json or parsed.other.quiet):
        print(_line(source, target, config.to, files))
    failed = False
    if parsed.other.check:
        largest, apart = _compare_logits(source, formats.open(target))
        record["logits"] = {"tokens": TOKENS, "largest_difference": apart, "largest": largest}
        text = (
            f"after {TOKENS} tokens the largest logit is {largest:.3g} and the largest difference "
            f"{apart:.2g}"
        )
        failed = config.dtype == "keep" and apart > ROUNDING * largest
        if failed:
            print(f"{target} computes other logits than {source.path}: {text}", file=sys.stderr)
        elif not parsed.other.json:
            print(f"checked: {text}")
    if parsed.other.json:
        print(json.dumps(record))
    return 1 if failed else 0


TOKENS = 64  # random ones, of --check
ROUNDING = 1e-4
"""Of the largest logit: the possible effect of another order of the same sums."""


def _compare_logits(a: "Opened", b: "Opened") -> tuple[float, float]:
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


def _card(source: "Opened", to: str, arguments: list[str]) -> bytes:
    """The model card: that of the source, or one from the record of its run."""
    from mlxhog.base import reading
    from mlxhog.checkpoint.manifest import CARD, CARD_MARK
    from mlxhog.checkpoint.run import run_of
    from mlxhog.report import card

    checkpoint = source.path.resolve()
    if run_of(checkpoint) is None and (source.folder / CARD).is_file():
        content = reading.read_small(source.folder / CARD)
        return content if CARD_MARK in content else content + b"\n" + CARD_MARK
    command = shlex.join(["mlxhog", "convert", *arguments])
    return card.text(source.config, checkpoint, to=to, command=command).encode()


def _shard_bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--shard-size is {text!r}; {error}") from None


def _record(source: "Opened", target: Path, to: str, files: Mapping[str, int]) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "from": source.format,
        "target": str(target.absolute()),
        "to": to,
        "family": source.config.model_type,
        "parameters": sum(tensor.size for tensor in source.tensors.values()),
        "tensors": len(source.tensors),
        "files": dict(files),
    }


def _line(source: "Opened", target: Path, to: str, files: Mapping[str, int]) -> str:
    from mlxhog.checkpoint.formats.opening import TITLES

    parameters = format_count(sum(tensor.size for tensor in source.tensors.values()))
    size = format_bytes(sum(files.values()))
    return (
        f"{source.config.title}, {parameters} parameters, {TITLES[source.format]} -> "
        f"{TITLES[to]}: {target}  {size} in {len(files)} file{'s' * (len(files) > 1)}"
    )
