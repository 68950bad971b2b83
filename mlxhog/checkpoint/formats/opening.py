"""Open a checkpoint of transformers, the xlstm package or mlxhog, recognized by content."""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import mapped, plain_yaml, reading
from mlxhog.base.mapped import FLOATS
from mlxhog.base.paths import expanded, quoted
from mlxhog.base.reading import MAX_CONFIG_BYTES
from mlxhog.checkpoint import hub, manifest
from mlxhog.checkpoint.formats import mlx_lm_adapter, peft, weights
from mlxhog.checkpoint.formats.weights import listed
from mlxhog.data import tokenizers
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import MAX_SHOWN, CheckpointError, ConfigError, DataError, shown
from mlxhog.models import adapters, families
from mlxhog.models.checkpoint_names import to_ours
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large import OUT_NORM, XLSTMLargeConfig


def _check_fit(tensors: Mapping[str, NDArray[Any]], model: ModelConfig, where: Path) -> None:
    expected = {name: tuple(spec.shape) for name, spec in families.param_spec(model).items()}
    hint = {model.untied_head: "; if the embedding is the head, say so in the config"}
    legal = " or ".join(dtype.name for dtype in FLOATS)
    faults = [f"{name} is missing{hint.get(name, '')}" for name in expected if name not in tensors]
    faults += [f"{name} is superfluous" for name in tensors if name not in expected]
    for name in sorted(tensors.keys() & expected.keys()):
        array = tensors[name]
        if array.shape != expected[name]:
            faults.append(f"{name} has shape {array.shape}, expected {expected[name]}")
        elif array.dtype not in FLOATS:
            faults.append(f"{name} has type {array.dtype}, expected {legal}")
    if faults:
        raise CheckpointError(
            f"{where} does not fit the model: {listed(faults)}; use the config of these tensors, "
            "or copy the checkpoint again if it is incomplete"
        )


def refuse_not_finite(names: Iterable[str], where: Path) -> None:
    """Raise CheckpointError if there are names of tensors with NaN or an infinity."""
    faults = [f"{name} has numbers that are not finite" for name in names]
    if faults:
        raise CheckpointError(
            f"{where} is damaged: {listed(faults)}; use another checkpoint of the same model"
        )


PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "_forward_module.")
"""Prefixes that DistributedDataParallel, torch.compile and Lightning add to names."""


def _unwrapped(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    for prefix in PREFIXES:
        if arrays and all(name.startswith(prefix) for name in arrays):
            return _unwrapped({name.removeprefix(prefix): a for name, a in arrays.items()})
    return arrays


def _refuse_quantized(
    fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], where: Path
) -> None:
    """Refuse weights that mlx-lm has quantized, which are uint32 beside their scales."""
    stems = [name.removesuffix(".scales") for name in arrays if name.endswith(".scales")]
    weights = [arrays[f"{stem}.weight"] for stem in stems if f"{stem}.weight" in arrays]
    if fields.get("quantization") or any(w.dtype == np.uint32 for w in weights):
        raise CheckpointError(
            f"{where} is quantized; name the export it was made from, or dequantize it: python -m "
            f"mlx_lm convert --hf-path {quoted(where)} --mlx-path NEW --dequantize "
            "--trust-remote-code"
        )


def _package_of(names: Collection[str], model_type: object, where: Path) -> str:
    """Return the package of these names: "hf" or "xlstm" for xLSTM Large, "xlstm_v1", or "mad"."""
    if any(name.startswith("xlstm_block_stack.") for name in names):
        return "xlstm_v1"
    if any(re.match(r"backbone\.blocks\.\d+\.(mlstm_layer|norm_mlstm)\.", name) for name in names):
        return "xlstm" if "embedding.weight" in names else "hf"
    if model_type == "mad" and "out_norm.weight" in names:
        return "mad"
    some = ", ".join(sorted(names)[:2])
    says = "" if model_type is None else f", and its config says model_type {model_type!r}"
    raise CheckpointError(
        f"{where} is not an xLSTM: its tensors are called {some}, ...{says}; name a checkpoint of "
        "transformers' xLSTM, of the xlstm package, or of mlxhog"
    )


CONFIGS = ("config.json", "config.yaml", "config.yml")


def _find_config(folder: Path) -> dict[str, Any]:
    """Return the merged fields of the config files of a folder; {} without files.

    `converting` writes two for the xlstm package, which refuses foreign fields in config.yaml.
    """
    merged: dict[str, Any] = {}
    for name in CONFIGS:
        if (folder / name).is_file():
            fields = read_config(folder / name, named=False)
            for key in merged.keys() & fields.keys():
                if merged[key] != fields[key]:
                    raise ConfigError(
                        f"{folder}: {str(key)[:MAX_SHOWN]} is {shown(merged[key])} in config.json "
                        f"and {shown(fields[key])} in {name}; keep one of the two"
                    )
            merged |= fields
    return merged


def read_config(path: Path, *, named: bool = True) -> dict[str, Any]:
    """Return the fields of one config file; in a training config they are under `model`.

    Raises:
        ConfigError: it is missing, cannot be parsed, is too large, leads out of its directory, or
            has no fields.
    """
    read = partial(reading.read_small, most=MAX_CONFIG_BYTES, named=named, refusal=ConfigError)
    data = plain_yaml.read_fields(path, "the config", read)
    is_of_training = isinstance(data.get("model"), dict) and "vocab_size" not in data
    return data["model"] if is_of_training else data


def _model_of(
    fields: Mapping[str, Any], package: str, where: Path, config: Path | None = None
) -> ModelConfig:
    """Return the model of a config, which must be of the family of the tensors."""
    family = package if package in ("xlstm_v1", "mad") else "xlstm"
    if not fields:
        raise CheckpointError(
            f"{where} has no config beside it ({' or '.join(CONFIGS[:2])}); put it there, or "
            f"convert the checkpoint: mlxhog convert {quoted(where)} NEW --format mlxhog "
            "--config FILE"
        )
    stated = fields.get("model_type", family)
    if stated != family:
        raise CheckpointError(
            f"{where}: the config has model_type {shown(stated)} and the tensors are those of "
            f"{family!r}; use the config of these tensors"
        )
    defaults: dict[str, Any] = {}
    if package == "xlstm":  # whose values of missing fields differ from those of transformers
        norm_bias = fields.get("use_bias", False) and fields.get("add_out_norm", True)
        defaults = {"ffn_proj_factor": 2.6667, "out_norm_bias": bool(norm_bias)}
    try:
        return families.read({**defaults, **fields, "model_type": family})
    except ConfigError as error:
        raise ConfigError(f"{config or f'the config of {where}'}: {error}") from error


OF_A_RUN = ("dropout", "reset_at_document_boundaries", "context_length", "bos_token_id")
"""Fields in which the model of a run may differ from the base of its adapter."""

TITLES = {
    "hf": "a directory of transformers",
    "xlstm": "a state dict of the xlstm package",
    "mlxhog": "a checkpoint of mlxhog",
    "mlx-lm": "a directory of mlx-lm",
    "peft": "an adapter of PEFT",
    "mlx-lm-adapter": "an adapter of mlx-lm",
}
"""Name of a format -> its description."""


@dataclass(frozen=True)
class Opened:
    """An open checkpoint; its tensors fit its model.

    `tensors` has for each of mlxhog's names a read-only view of a mapped file, of a type in
    `mapped.FLOATS`, which is read at its first use; `copy_into` checks that it is finite.
    """

    path: Path  # that was opened
    folder: Path  # of its files
    format: str  # a key of `TITLES`
    config: ModelConfig  # with `adapter`, if it is one
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    base: "Opened | None" = None  # the frozen model of an adapter
    base_name: str = ""  # as the adapter's files have it: a path, or hf:OWNER/NAME[@REVISION]

    @property
    def title(self) -> str:
        """Its name on the hub, or its path."""
        return hub.title(self.path) or str(self.path)

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of its tokenizer's files; an adapter without them has those of its base."""
        if self.base is not None and not (self.folder / tokenizers.FILES[0]).is_file():
            return self.base.tokenizer_folder
        return hub.tokenizer_folder(self.folder)

    def digest(self) -> str:
        """Return the SHA-256 of the tensors by name; their files are read once."""
        return weights.digest(self.tensors, weights.parts(weights.find(self.path)))

    def tokenizer(self) -> Tokenizer | None:
        """Return the checkpoint's tokenizer; None if there is no tokenizer.json.

        Its start token is that of the tokenizer's files, else that of the config.
        """
        folder = self.tokenizer_folder
        if not (folder / "tokenizer.json").is_file():
            return None
        return tokenizers.load(folder, self.config.bos_token_id)

    def text_tokenizer(self) -> Tokenizer:
        """Return the tokenizer of a language model, by which text is read and written."""
        families.check_language_model(self.config)
        tokenizer = self.tokenizer()
        if tokenizer is None:
            raise DataError(
                f"{self.folder} has no tokenizer.json, so no text can be read or written; copy "
                "the model's tokenizer.json and tokenizer_config.json there"
            )
        if tokenizer.n_ids > self.config.vocab_size:
            raise DataError(
                f"{self.folder}: the tokenizer has {tokenizer.n_ids} ids and the model "
                f"{self.config.vocab_size}; copy the model's own tokenizer there"
            )
        return tokenizer

    def merging(self) -> Callable[[str, NDArray[Any]], NDArray[Any]]:
        """Return a function of a name and a weight, which adds the product of the adapter."""
        if (lora := self.config.adapter) is None:
            return lambda name, w: w
        own = {
            name: mapped.in_memory(array)
            for name, array in self.tensors.items()
            if adapters.is_adapter(name)
        }
        return lambda name, w: adapters.merged(lora, name, mapped.in_memory(w), own)

    def merged(self) -> "Opened":
        """Return the model with its adapter in the weights, each of which is added when it is read.

        A whole model is returned as it is.
        """
        if self.config.adapter is None:
            return self
        model = replace(self.config, adapter=None)
        whole = {name: self.tensors[name] for name in families.param_spec(model)}
        return replace(self, config=model, tensors=_Merged(whole, self.merging()))

    def copy_into(self, out: Mapping[str, NDArray[Any]]) -> None:
        """Fill arrays with the tensors, converted to their types; takes little extra memory.

        `out` has for each of our names a C-contiguous array of the tensor's shape. A
        CheckpointError names tensors that are not finite.
        """
        refuse_not_finite(
            [name for name, tensor in self.tensors.items() if not mapped.copy(tensor, out[name])],
            self.path,
        )


@dataclass(frozen=True)
class _Merged(Mapping[str, NDArray[Any]]):
    """Weights to which an adapter is added when one is read."""

    whole: Mapping[str, NDArray[Any]]
    merge: Callable[[str, NDArray[Any]], NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.merge(name, self.whole[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def __len__(self) -> int:
        return len(self.whole)


def open_checkpoint(
    path: Path | str,
    config: Path | str | None = None,
    *,
    verify: bool = True,
    base: Opened | None = None,
) -> Opened:
    """Open a checkpoint of any format; numbers are read only for the digests of our own format.

    `path` is a directory, or a file of tensors with its config beside it, if not at `config`.
    `verify` compares the tensors of mlxhog's checkpoints with the digests in the manifest, which
    reads them, at about 1.3 GB/s. A single file has no manifest. An adapter is opened with its base
    model, of which `config` is then; `base` is another copy of it.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged or of another family of models, or
            its tensors do not fit its config.
        ConfigError: a field of the config is missing, or its fields contradict each other.
        EnvironmentLacks: it is a torch file, and torch is not installed.
    """
    path = expanded(path)
    if path.name in (peft.MODEL, mlx_lm_adapter.MODEL) and (path.parent / peft.CONFIG).is_file():
        path = path.parent
    if (path / peft.CONFIG).is_file():
        return _open_adapter(path, config, verify, base)
    file = weights.find(path)
    folder = file.parent
    ours = path.is_dir() and (path / manifest.NAME).is_file()
    if ours:
        record = manifest.read(path)
        manifest.verify(path, record, large=())
    elsewhere = None if config is None else expanded(config)
    fields = _find_config(folder) if elsewhere is None else read_config(elsewhere)
    arrays = _unwrapped(weights.read(file))
    _refuse_quantized(fields, arrays, folder)
    fields = families.without_export(fields)
    package = _package_of(arrays, fields.get("model_type"), path)
    model = _with_width_of(arrays, _model_of(fields, package, path, elsewhere), package)
    tensors = _without_copies(to_ours(arrays, model), model, path)
    norm = f"{OUT_NORM}.weight"
    if package == "hf" and norm in tensors and not model.layout.out_norm:
        raise ConfigError(
            f"{path}: add_out_norm is false, but the file has {norm}, which transformers applies "
            "nevertheless; set add_out_norm to true to compute the same, or remove the tensor"
        )
    _check_fit(tensors, model, path)
    if ours and verify:  # last: reading the files takes time, and the checks above do not
        manifest.verify(path, record, large=[part.name for part in weights.parts(file)])
    kind = "mlxhog" if ours or package == "mad" else "hf" if package == "hf" else "xlstm"
    return Opened(path.absolute(), folder.absolute(), kind, model, tensors)


def _open_adapter(
    path: Path, config: Path | str | None, verify: bool, base: Opened | None
) -> Opened:
    """Open an adapter beside the tensors of its base model."""
    digest, fields = None, dict[str, Any]()
    if (path / manifest.NAME).is_file():
        record = manifest.read(path)
        manifest.verify(path, record, large=[peft.MODEL] if verify else ())
        trained_on = record["state"].get("base", {})
        if not isinstance(trained_on, dict):
            raise manifest.damaged(path, f"the base in {manifest.NAME} is {shown(trained_on)}")
        digest, fields = trained_on.get("digest"), _find_config(path)
    is_mlx_lm = mlx_lm_adapter.FIELDS in peft.read_fields(path)
    own = mlx_lm_adapter.read(path) if is_mlx_lm else peft.read(path)
    name, key = _base_name(own), "model" if is_mlx_lm else "base_model_name_or_path"
    is_given = base is not None
    if base is None:
        base = open_checkpoint(_base_path(name, path, key), config, verify=verify)
    if base.config.adapter is not None:
        raise ConfigError(
            f"{path}: its base model {base.title} is an adapter itself; merge it before: mlxhog "
            f"convert {base.title} NEW --merge --format mlxhog"
        )
    if is_given and digest is None and not _is_called(base, name):
        raise CheckpointError(
            f"{path} is an adapter for another base model: it names {name}, and this is "
            f"{base.title}; if they are the same, write {base.path} as {key} in "
            f"{path / peft.CONFIG}"
        )
    if verify and digest not in (None, base.digest()):
        raise CheckpointError(
            f"{path} is an adapter for another base model: {base.title} has the digest "
            f"{base.digest()}, and it was trained on {digest}; "
            + ("use that" if is_given else f"copy that to {_kept_base(path) or name}")
        )
    lora, tensors, head = own.lora, dict(own.tensors), base.config.untied_head
    if base.config.tie_word_embeddings and families.embedding(base.config) in tensors:
        tensors = _without_copies(tensors, base.config, path)  # transformers has the head, too
        module = head.rpartition(".")[0]
        saved = tuple(one for one in lora.modules_to_save if one != module)
        lora = replace(lora, modules_to_save=saved)
    try:
        model = base.config
        if fields:  # of a run, whose model may differ from its base in these
            trained = families.read({"model_type": model.model_type, **fields}).values()
            known = model.values().keys() & trained.keys() & set(OF_A_RUN)
            model = replace(model, **{name: trained[name] for name in known})
        model = replace(model, adapter=lora)
        _check_fit({**base.tensors, **tensors}, model, path)
    except ConfigError as error:
        raise ConfigError(f"{path} does not fit its base model {base.title}: {error}") from error
    kind, folder = "mlx-lm-adapter" if is_mlx_lm else "peft", path.absolute()
    tensors = {**base.tensors, **tensors}
    is_there = hub.is_name(name) or (name and os.path.exists(expanded(name)))
    if not is_there or (base.path == _kept_base(path) and not hub.is_name(name)):
        name = str(base.path)  # of a run that was moved or copied, or of another copy of the base
    return Opened(folder, folder, kind, model, tensors, base, name)


def _is_called(base: Opened, name: str) -> bool:
    """Whether `Opened.base_name` is the name of an open base, or of a copy of its tensors."""
    if hub.is_name(name):
        cached = hub.name_of(base.path)
        return cached is not None and hub.parse(cached)[:2] == hub.parse(name)[:2]
    place = expanded(name)
    if not name or not os.path.exists(place):
        return not name
    if place.samefile(base.path):
        return True
    return bool(weights.candidates(place)) and open_checkpoint(place).digest() == base.digest()


def _kept_base(path: Path) -> Path | None:
    """Return where a run has, or may have, the base of its checkpoint; None for another adapter."""
    folder = path.resolve().parent
    is_of_run = folder.name == "checkpoints" and (path / manifest.NAME).is_file()
    return folder.with_name("base") if is_of_run else None


def _base_path(name: str, path: Path, key: str) -> Path:
    """Return the place of an adapter's base: in its run, at its path, or in the hub's cache.

    Its config has the name as `key`.
    """
    of_run = _kept_base(path)
    if of_run is not None and of_run.exists():
        return of_run
    if hub.is_name(name):
        return hub.fetch(name)
    if name and os.path.exists(expanded(name)):
        return expanded(name)
    where = f"model {name} is not there" if name else "model is not named"
    way = f"write its path, or OWNER/NAME on the hub, as {key} in {path / peft.CONFIG}"
    if (path / manifest.NAME).is_file():  # whose files keep their digests
        way = f"copy or move it to {of_run or name}"
    raise CheckpointError(f"{path} is an adapter, and its base {where}; {way}")


def _base_name(own: peft.AdapterFiles) -> str:
    """Return the name of an adapter's base as `Opened.base_name`."""
    if hub.is_name(own.base) or not own.base or os.path.exists(expanded(own.base)):
        return own.base
    name = f"{hub.PREFIX}{own.base}" + (f"@{own.revision}" if own.revision else "")
    with suppress(ConfigError):
        hub.parse(name)
        return name
    return own.base


def _with_width_of(
    arrays: Mapping[str, NDArray[Any]], model: ModelConfig, package: str
) -> ModelConfig:
    """Return the model with the feed-forward width of a state dict of the xlstm package.

    Its releases round the width up in other ways, and a config does not say which wrote it.
    """
    down = arrays.get("backbone.blocks.0.ffn.proj_down.weight")
    if package != "xlstm" or not isinstance(model, XLSTMLargeConfig) or down is None:
        return model
    width, d = down.shape[-1] if down.ndim == 2 else 0, model.hidden_size
    if width in (0, model.ffn_dim):
        return model
    multiple = math.gcd(width, model.ffn_round_up_to_multiple_of)
    exact = replace(model, ffn_proj_factor=width / d, ffn_round_up_to_multiple_of=multiple)
    if exact.ffn_dim == width:
        return exact
    return replace(exact, ffn_proj_factor=math.nextafter(width / d, math.inf))  # it is cut off


def _without_copies(
    tensors: dict[str, NDArray[Any]], model: ModelConfig, path: Path
) -> dict[str, NDArray[Any]]:
    """Return one tensor for the embedding and the head of a model that ties them."""
    head, embedding = model.untied_head, families.embedding(model)
    if not model.tie_word_embeddings or head not in tensors:
        return tensors
    copy = tensors.pop(head)
    one = tensors.setdefault(embedding, copy)  # a file may hold either name
    same = copy is one or (
        copy.shape == one.shape
        and copy.dtype == one.dtype
        and all(
            np.array_equal(here.view(np.uint8), there.view(np.uint8))
            for here, there in zip(mapped.chunks(copy), mapped.chunks(one), strict=True)
        )
    )
    if not same:
        raise ConfigError(
            f"{path}: the config ties the embedding and the head, but {head} and {embedding} "
            "differ; set tie_word_embeddings (in v1: tie_weights) to false"
        )
    return tensors
