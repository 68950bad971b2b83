"""`mlxhog models`: the architectures; `mlxhog convert`: a checkpoint in another format."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes, format_count
from mlxhog.cli.flags import Json, Plugins, Quiet, RunsDirectory
from mlxhog.cli.frame import Report, command, written
from mlxhog.config.options import argument, option, switch
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.checkpoint.formats import Opened
    from mlxhog.models.families import ModelConfig


@dataclass(frozen=True, kw_only=True)
class _Models(Plugins, Json):
    name: str | None = argument(
        "[NAME]", "a name, a YAML file, or a checkpoint; without it all names"
    )
    set: tuple[str, ...] = option(
        (), "another value for a field, as in mlxhog train --set", many=True, metavar="NAME=VALUE"
    )


@command("models")
def run(config: _Models) -> Report:
    """List the architectures of the package, or print one as YAML with a comment for every field.

    Such a file is for `mlxhog train --model FILE`. The numbers of parameters are those with the
    shown vocabulary; a run takes that of its tokenizer.

    Examples:
        models
        models 10m > my.yaml
        models tiny --set hidden_size=256 --set num_hidden_layers=6
        models --json
    """
    changes = ", ".join(config.set)
    if changes and config.name is None:
        raise ConfigError(
            "--set is for one model; name it: mlxhog models tiny --set hidden_size=256"
        )
    from mlxhog.models import registry

    if config.name is None:
        rows = [_facts(name, registry.load_architecture(name)) for name in registry.architectures()]
        rows.sort(key=lambda row: (row["family"], row["parameters"]))
        after = ["", "next: mlxhog train --model 5m --time 10m", "      mlxhog models 5m > my.yaml"]
        return Report(rows, [rows, *after])
    model = registry.load_architecture(config.name, changes)
    facts = _facts(config.name, model)
    changed = f" with {changes}" if changes else ""
    text = [
        f"# {config.name}{changed}: {facts['parameters']:,} parameters with this vocabulary.",
        "# Train it: mlxhog train --model FILE",
    ]
    if config.name in registry.architectures() and not changes:
        own = registry.source(config.name).splitlines()  # the comments of its file
        text += [line for line in own if line.startswith("#")]
    text.append(registry.to_yaml(model).removesuffix("\n"))
    return Report({**facts, "fields": registry.as_mapping(model)}, text)


def _facts(name: str, model: "ModelConfig") -> dict[str, Any]:
    from mlxhog.models.families import param_count

    return {
        "name": name,
        "family": model.model_type,
        "parameters": param_count(model),
        "hidden_size": model.hidden_size,
        "blocks": model.num_hidden_layers,
        "vocab_size": model.vocab_size,
    }


TOKENS = 64  # random ones, of --check
ROUNDING = 1e-4
"""Of the largest logit: the possible effect of another order of the same sums."""


@dataclass(frozen=True, kw_only=True)
class _Convert(RunsDirectory, Plugins, Quiet):
    source: str = argument("SRC", "a run, latest, or a checkpoint's path")
    target: str = argument("DST", "the directory to create")
    check: bool = switch("compute with both, and compare the logits")
    format: str = option(
        "", "hf: for transformers; xlstm: a state dict of the xlstm package; mlxhog: ours",
        choices=("hf", "xlstm", "mlxhog"), required=True,
    )  # fmt: skip
    dtype: str = option(
        "keep", "type of the weights", choices=("keep", "float32", "bfloat16", "float16")
    )
    config: str | None = option(None, "config of SRC, if it is in another place")
    overwrite: bool = option(False, "replace an existing checkpoint at DST")


@command("convert", writes=True)
def convert(config: _Convert) -> Report:
    """Write a checkpoint in another format.

    SRC may be a run, a checkpoint of mlxhog, a directory of transformers (such as NX-AI/xLSTM-7b),
    or a state dict of the xlstm package; the format is detected. Only --dtype changes the numbers.

    Examples:
        convert latest exported --format hf
        convert model.pt for-transformers --config config.yaml --format hf
        convert ours for-the-package --format xlstm --check
    """
    # These import NumPy: wrong input is reported before.
    from mlxhog.checkpoint import checkpoint, formats
    from mlxhog.checkpoint.formats.converting import MODEL, check_target, convert
    from mlxhog.checkpoint.formats.opening import TITLES

    target = expanded(config.target)
    check_target(target, overwrite=config.overwrite)
    source = formats.open(checkpoint.locate(config.source, Path(config.runs_dir)), config.config)
    dtype = None if config.dtype == "keep" else config.dtype

    def show(name: str, done: int, total: int) -> None:
        share = done / max(total, 1)
        line.show(f"{share:.0%}  {format_bytes(done)} of {format_bytes(total)}  {name}")

    with config.status() as line:
        how: dict[str, Any] = {"card": _card(source, config), "overwrite": config.overwrite}
        n_bytes = convert(source, target, config.format, dtype, on_tensor=show, **how)
    count = sum(one.size for one in source.tensors.values())
    facts: dict[str, Any] = {
        "source": str(source.path),
        "from": source.format,
        "target": str(target.absolute()),
        "format": config.format,
        "family": source.config.model_type,
        "parameters": count,
        "tensors": len(source.tensors),
        "files": {MODEL: n_bytes},
    }
    head = (
        f"{source.config.title}, {format_count(count)} parameters, {TITLES[source.format]} -> "
        f"{TITLES[config.format]}: {target}  {format_bytes(n_bytes)}"
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


def _compare_logits(a: "Opened", b: "Opened") -> tuple[float, float]:
    """Return the largest logit of the first, and the largest difference, by PyTorch in float32."""
    import numpy as np

    from mlxhog import backends
    from mlxhog.checkpoint.formats.opening import refuse_not_finite

    logits = []
    for one in (a, b):
        ids = np.random.default_rng(0).integers(0, one.config.vocab_size, (1, TOKENS), np.int32)
        backend = backends.create("torch:cpu", threads=1, kernels="auto")
        try:
            refuse_not_finite(backend.load(one.config, one.tensors), one.path)
            logits.append(backend.logits(ids, None)[0])
        finally:
            backend.close()
    return float(np.abs(logits[0]).max()), float(np.abs(logits[0] - logits[1]).max())


def _card(source: "Opened", config: _Convert) -> bytes:
    from mlxhog.base import reading
    from mlxhog.checkpoint.manifest import CARD, CARD_MARK
    from mlxhog.checkpoint.run import run_of
    from mlxhog.display import card

    checkpoint = source.path.resolve()
    if run_of(checkpoint) is None and (source.folder / CARD).is_file():
        content = reading.read_small(source.folder / CARD)
        return content if CARD_MARK in content else content + b"\n" + CARD_MARK
    command = f"mlxhog convert {written(config, leave_out=('json', 'quiet'))}"
    return card.text(source.config, checkpoint, to=config.format, command=command).encode()
