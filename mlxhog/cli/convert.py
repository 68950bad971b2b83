"""Write a checkpoint as transformers, mlx-lm, PEFT, the xlstm package or mlxhog has it.

SRC may be a run, a checkpoint of mlxhog, a directory of transformers, a state dict of the xlstm
package, an adapter of PEFT or mlx-lm, or a model on the Hugging Face hub; the format is detected.
Only --dtype and --merge change the numbers.

Examples:
    convert latest exported --format hf
    convert latest for-mlx-lm --format mlx-lm
        load it with --trust-remote-code
    convert hf:NX-AI/xLSTM-7b ours --format mlxhog --yes
        27 GB to download, and of disk
    convert model.pt for-transformers --config config.yaml --format hf
    convert ours for-the-package --format xlstm --check
    convert latest merged --merge --format hf
        of a run with an adapter
    convert latest adapter --format peft
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes, format_count
from mlxhog.cli.frame import (
    CommandResult,
    Download,
    argument,
    command,
    command_line,
    model_argument,
    option,
)
from mlxhog.cli.frame.flags import Plugins, Quiet, RunsDirectory

if TYPE_CHECKING:
    from mlxhog.checkpoint.formats import Opened

TOKENS = 64  # random ones, of --check; fewer for a model with fewer positions
ROUNDING = 1e-4
"""Share of the largest logit by which another order of the same sums may change a logit."""


@dataclass(frozen=True, kw_only=True)
class _Convert(RunsDirectory, Plugins, Download, Quiet):
    source: str = model_argument("SRC")
    target: str = argument("DST", "the directory to create")
    check: bool = option(False, "compute with both, and compare the logits")
    format: str = option(
        "",
        "hf: for transformers; mlx-lm: for mlx-lm; xlstm: a state dict of the xlstm package; "
        "mlxhog: ours; of an adapter alone, peft or mlx-lm-adapter",
        choices=("hf", "mlx-lm", "xlstm", "mlxhog", "peft", "mlx-lm-adapter"), required=True,
    )  # fmt: skip
    merge: bool = option(False, "add an adapter to the weights of its base model")
    dtype: str = option(
        "keep", "type of the weights", choices=("keep", "float32", "bfloat16", "float16")
    )
    config: str | None = option(None, "config of SRC, if it is in another place")
    overwrite: bool = option(False, "replace an existing checkpoint at DST")


@command(writes=True)
def run(config: _Convert) -> CommandResult:
    # These import NumPy: wrong input is reported before.
    from mlxhog.checkpoint import checkpoint, formats
    from mlxhog.checkpoint.formats.converting import FILES, MODEL, check_target, convert
    from mlxhog.checkpoint.formats.opening import TITLES
    from mlxhog.models import families

    target = expanded(config.target)
    check_target(target, overwrite=config.overwrite)
    source = formats.open(checkpoint.locate(config.source, Path(config.runs_dir)), config.config)
    dtype = None if config.dtype == "keep" else config.dtype

    def show(name: str, done: int, total: int) -> None:
        share = done / max(total, 1)
        line.show(f"{share:.0%}  {format_bytes(done)} of {format_bytes(total)}  {name}")

    messages = list[str]()
    with config.status() as line:
        how: dict[str, Any] = {"card": _card(source, config), "overwrite": config.overwrite}
        how |= {"merge": config.merge, "on_tensor": show, "say": messages.append}
        n_bytes = convert(source, target, config.format, dtype, **how)
    model, alone = source.config, config.format in FILES
    written = families.trainable_spec(model) if alone else replace(model, adapter=None).layout.spec
    count = sum(one.size for one in written.values())
    payload: dict[str, Any] = {
        "source": source.title,
        "from": source.format,
        "target": str(target.absolute()),
        "format": config.format,
        "family": source.config.model_type,
        "parameters": count,
        "tensors": len(written),
        "files": {FILES.get(config.format, MODEL): n_bytes},
    }
    head = (
        f"{source.config.title}, {format_count(count)} parameters, {TITLES[source.format]} -> "
        f"{TITLES[config.format]}: {target}  {format_bytes(n_bytes)}"
    )
    if not config.check:
        return CommandResult(payload, head, 0, messages)
    n_tokens = TOKENS if model.position == "none" else min(TOKENS, model.max_length)
    largest, apart = _compare_logits(source, formats.open(target), n_tokens)
    payload["logits"] = {"tokens": n_tokens, "largest_difference": apart, "largest": largest}
    if differs := config.dtype == "keep" and apart > ROUNDING * largest:
        messages.append(
            f"{target} computes other logits than {source.title}: after {n_tokens} tokens the "
            f"largest logit is {largest:.3g} and the largest difference {apart:.2g}"
        )
    text = [head, {"logits": payload["logits"]}]
    return CommandResult(payload, text, int(differs), messages)


def _compare_logits(a: "Opened", b: "Opened", n_tokens: int) -> tuple[float, float]:
    """Return the largest logit of the first, and the largest difference, by PyTorch in float32."""
    import numpy as np

    from mlxhog import backends
    from mlxhog.checkpoint.formats.opening import refuse_not_finite

    logits = []
    for one in (a, b):
        ids = np.random.default_rng(0).integers(0, one.config.vocab_size, (1, n_tokens), np.int32)
        backend = backends.create("torch:cpu", threads=1, kernels="auto")
        try:
            refuse_not_finite(backend.load(one.config, one.tensors), one.path)
            logits.append(backend.logits(ids, None)[0])
        finally:
            backend.close()
    return float(np.abs(logits[0]).max()), float(np.abs(logits[0] - logits[1]).max())


def _card(source: "Opened", config: _Convert) -> bytes:
    from mlxhog.base import reading
    from mlxhog.checkpoint.formats.converting import needs_code
    from mlxhog.checkpoint.manifest import CARD, CARD_MARK
    from mlxhog.checkpoint.run import run_of
    from mlxhog.display import card
    from mlxhog.display.record import path_arguments

    checkpoint, earlier = source.path.resolve(), b""
    if run_of(checkpoint) is None and (source.folder / CARD).is_file():
        earlier = reading.read_small(source.folder / CARD)
        if CARD_MARK not in earlier:
            return earlier + b"\n" + CARD_MARK
    argv = shlex.split(command_line(config, leave_out=("json", "quiet", "yes")))
    command = f"mlxhog convert {shlex.join(path_arguments(argv, public=True))}"
    is_whole = config.merge or config.format == "mlx-lm"
    model = replace(source.config, adapter=None) if is_whole else source.config
    base = None if source.base is None else source.base.folder
    how: dict[str, Any] = {"to": config.format, "command": command, "base": base}
    how["has_code"] = config.format == "hf" and needs_code(model, source.tensors)
    text = card.text(model, checkpoint, **how).encode()
    return card.converted(earlier, text) if earlier else text
