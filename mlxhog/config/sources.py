"""Option values from YAML files, flags and programs, merged over the defaults.

A config source maps a name as written to (value, provenance). The provenance (`conf.yaml:7`,
`--lr`) is where an error points; all problems are reported together.

A source may name a component, give hyperparameters of it, or both; these are in parentheses after
the name, or alone under their flat names:

    strategy: {name: ssp, slack: 2}       slack: 2        --strategy "ssp(slack=2)"       --slack 2

A later source that names the same component overrides the hyperparameters that it gives. One that
names another component starts from its defaults. If no source names one, the default counts; if
that is open ("auto"), the first component that has all hyperparameters. One that the component does
not have is an error.
"""

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mlxhog.base import darwin, plain_yaml, reading
from mlxhog.base.plain_yaml import as_assignments
from mlxhog.config.components import RUN_REGISTRIES, Component, ComponentRegistry, UnknownComponent
from mlxhog.config.options import Option, options
from mlxhog.errors import MAX_SUGGESTIONS, ConfigError, did_you_mean, nearest, shown

Config = TypeVar("Config")
ConfigSource = dict[str, tuple[object, str]]
"""Name of an option as written, in snake_case -> its value and its provenance."""


def label(name: str, provenance: str) -> str:
    """Return the prefix of an error about a value: provenance and name, each once."""
    has_name = provenance.startswith("-") or ": " in provenance or provenance.lower() == name
    return provenance if has_name else f"{provenance}: {name}" if provenance else name


def of_keywords(call: str, keywords: Mapping[str, object]) -> ConfigSource:
    """Return keyword arguments of a call as a source; a path is its text."""
    return {
        name: (os.fspath(value) if isinstance(value, os.PathLike) else value, call)
        for name, value in keywords.items()
    }


def refuse_both(call: str, cls: type, given: Collection[str]) -> None:
    """Raise a ConfigError if two options are given of which one excludes the other."""
    for name, spec in options(cls).items():
        if other := next((one for one in spec.excludes if {name, one} <= {*given}), None):
            raise ConfigError(f"{call}: {name} and {other} are both given; keep one")


def read_yaml(path: Path, *, named: bool = False) -> ConfigSource:
    """Return the keys of a YAML file, or of a pipe that the user named, by flat names.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of names to values,
            each once.
    """
    try:
        text = reading.read_text(path, named=named)
        entries = plain_yaml.entries(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the configuration: {darwin.reason(error)}"
        ) from error
    except plain_yaml.NotYaml as error:
        where = path if error.line is None else f"{path}:{error.line}"
        raise ConfigError(f"{where}: not YAML: {error.problem}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; a configuration is a YAML file") from error
    if entries is None:
        raise ConfigError(f"{path}: wanted lines such as `lr: 1e-3`")
    return by_flat_names({name: (value, f"{path}:{line}") for name, value, line in entries})


def by_flat_names(source: ConfigSource) -> ConfigSource:
    """Return a source with each component as its name, and its hyperparameters beside it."""
    flat = dict(source)
    for registry in RUN_REGISTRIES:
        with suppress(ConfigError, KeyError):  # merging reports it; or the source has none
            value, provenance = source[registry.title]
            name, values = registry.parts(value)
            if name in registry.known():
                flat[registry.title] = name, provenance
                flat = {word: (one, provenance) for word, one in values.items()} | flat
    return flat


def specs_of(cls: type, values: Mapping[str, object]) -> dict[str, Option]:
    """Return the options of a configuration, and all hyperparameters by their flat names.

    Defaults are those of the components that `values` name.
    """
    specs = dict(options(cls))
    for name, registry in _registries(cls).items():
        named = registry.known().get(str(values.get(name)))
        own = () if named is None else options(named).values()
        specs |= {**registry.hyperparameters(), **{one.flat: one for one in own}}
    return specs


def _registries(cls: type) -> dict[str, ComponentRegistry]:
    return {name: spec.registry for name, spec in options(cls).items() if spec.registry is not None}


def values_of(config: object) -> dict[str, object]:
    """Return every option: components as their names, hyperparameters under flat names."""
    values = {name: getattr(config, name) for name in options(type(config))}
    for name, value in list(values.items()):
        if isinstance(value, Component):
            own = options(type(value))
            values |= {name: value.name, **{own[n].flat: getattr(value, n) for n in own}}
    return values


def yaml_values_of(config: object) -> dict[str, object]:
    """Return `values_of` as in YAML."""
    values = values_of(config)
    specs = specs_of(type(config), values)
    return {name: specs[name].to_yaml_value(value) for name, value in values.items()}


def unmet_requirements(config: object) -> Iterator[tuple[str, str]]:
    """Yield (option, sentence) of every option that is set without those that it requires.

    Raises:
        ConfigError: an option of a user's own class requires one that does not exist.
    """
    values = yaml_values_of(config)
    specs = specs_of(type(config), values)
    for name, spec in specs.items():
        if unknown := min(spec.requires.keys() - specs.keys(), default=""):
            near = did_you_mean(unknown, specs)
            raise ConfigError(f"{name} requires {unknown!r}, which is no option{near}")
        value = values.get(name)
        if value is False or value in (spec.to_yaml_value(spec.default), "none", "off", None):
            continue
        for other in spec.unmet(values):
            wanted = "|".join(spec.requires[other])
            is_for = f"is for {other}={wanted}, and {other} is {values[other]}"
            yield name, f"{is_for if wanted else f'needs {other}'}; set that, or leave {name} out"


def resolve(cls: type[Config], sources: Iterable[ConfigSource]) -> Config:
    """Return `cls`, a dataclass of `option` fields, from sources; later ones override earlier.

    Raises:
        ConfigError: every unknown name, invalid value, repetition and constraint, one per line.
    """
    return cls(**_merged(cls, sources))


class ConfigBase:
    """A frozen dataclass (`init=False`) whose arguments are a source, hyperparameters included.

    So they are for `dataclasses.replace`. `__post_init__` checks the typed values.
    """

    def __init__(self, **values: Any) -> None:
        """Convert the values, and check them together; an option without one has its default."""
        typed = _merged(type(self), [of_keywords("", values)])
        for name, spec in options(type(self)).items():
            value = typed[name] if name in typed else spec.convert(spec.default)
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values."""

    def having(self: Config, **values: object) -> Config:
        """Return a copy with other values, which break no constraint; only these are converted."""
        other, specs = copy.copy(self), options(type(self))
        vars(other).update({name: specs[name].convert(value) for name, value in values.items()})
        return other


def _merged(cls: type, sources: Iterable[ConfigSource]) -> dict[str, Any]:
    """Return the typed value of every option that a source gives.

    Raises:
        ConfigError: every unknown name, wrong value and repetition.
    """
    wrong, specs, registries = list[str](), options(cls), _registries(cls)
    every = specs_of(cls, {}).items()
    names = {word: name for name, spec in every for word in (name, *spec.aliases)}
    merged = ConfigSource()  # components by their classes, with the prefixes of errors
    for source in sources:
        known = _known(cls, source, names, wrong)
        for name, registry in registries.items():
            if name in known:
                value, where = known.pop(name)
                is_open = specs[name].optional and value in (None, specs[name].none)
                try:
                    title, values = ("", {}) if is_open else registry.parts(value)
                except ConfigError as error:
                    wrong.append(f"{where} is {shown(value)}; {error}")
                    continue
                own = type(value) if isinstance(value, Component) else registry.known().get(title)
                earlier, _ = merged.get(name, (None, ""))
                if is_open or earlier not in (None, own or title):
                    of_another = registry.hyperparameters()
                    merged = {n: one for n, one in merged.items() if n not in of_another}
                if own is not None:
                    known = {n: (x, f"{where}: {title}: {n}") for n, x in values.items()} | known
                known[name] = own or title, where
        for name, (value, where) in known.items():
            both = name in merged and name in specs and specs[name].repeats
            merged[name] = (added(merged[name][0], value) if both else value, where)
    typed, unknown = dict[str, Any](), None
    for name, registry in registries.items():
        flat = {word: merged.pop(word) for word in registry.hyperparameters() if word in merged}
        if name in merged or flat:
            component, where = merged.pop(name, ("", ""))
            try:
                typed[name] = _component(specs[name], component, flat)
            except UnknownComponent as error:
                unknown = error
                wrong.append(f"{where}: {error}")
            except ConfigError as error:
                wrong.append(str(error))
    for name, (value, where) in merged.items():
        try:
            typed[name] = specs[name].convert(value)
        except ValueError as error:
            wrong.append(f"{where} {error}")
    if wrong:
        raise ConfigError("\n".join(wrong)) from unknown
    return typed


def _component(spec: Option, component: Any, values: ConfigSource) -> Component | None:
    """Make a component, given or by its name, with all its hyperparameters.

    An open one, "", is the default, or the first that has all hyperparameters, or stays open: None.

    Raises:
        UnknownComponent: no component has that name.
        ConfigError: every hyperparameter that it lacks, or that has an invalid value.
    """
    registry: ComponentRegistry = spec.registry
    if not component and spec.default not in (None, spec.none):
        component = spec.default
    elif not component:
        owners = {flat: registry.hyperparameters()[flat].owners for flat in values}
        (first, those), *others = owners.items() or [("", ())]
        component = next((one for one in those if all(one in own for _, own in others)), None)
        if component is None and those:
            other = next(flat for flat, own in others if those[0] not in own)
            raise ConfigError(
                f"{values[other][1]}: {registry.lacks(those[0], other)}; no {registry.title} has "
                f"both {first} and {other}, leave one out"
            )
    return None if component is None else registry.make(component, values)


def _known(
    cls: type, source: ConfigSource, names: Mapping[str, str], wrong: list[str]
) -> ConfigSource:
    """Return a source by the options' own names, each with the prefix of an error about it.

    Unknown and repeated names are appended to `wrong`.
    """
    known, first = ConfigSource(), dict[str, tuple[str, str]]()
    for written, (value, provenance) in source.items():
        name = names.get(written)
        if name is None:
            near = suggestion(written, names) if len(wrong) < MAX_SUGGESTIONS else ""
            place = provenance or f"{cls.__name__}()"
            wrong.append(f"{place}: no option {shown(written)}{near}")
        elif name in known:
            other, place = first[name]
            wrong.append(
                f"{provenance}: {written!r} and {other!r} ({place}) are the same option; keep one"
            )
        else:
            first[name] = written, provenance
            is_call = provenance.endswith("()")
            known[name] = value, label(written if is_call else name, provenance)
    return known


def added(earlier: object, later: object) -> object:
    """Return both values of an option that repeats; `none` drops the earlier."""
    if later in (None, "none") or earlier in (None, "none"):
        return later
    try:
        return f"{as_assignments(earlier)}, {as_assignments(later)}"
    except ValueError:
        return later  # converting it raises the error


_ELSEWHERE = {
    "batch_size": "b batch micro_batch_size per_device_train_batch_size train_batch_size",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "clip": "clip_grad_norm grad_clip gradient_clip_val max_grad_norm",
    "dtype": "amp bf16 compute_dtype fp16 mixed_precision precision torch_dtype",
    "data": "corpus data_dir dataset dataset_name dataset_path train_data train_file",
    "epochs": "max_epochs n_epochs num_epochs num_train_epochs",
    "eps": "adam_eps adam_epsilon epsilon",
    "eval_every": "eval_freq eval_interval eval_steps eval_strategy evaluation_strategy",
    "val_subset_tokens": "eval_iters max_eval_samples per_device_eval_batch_size val_batches",
    "grad_accumulation": "accumulate_grad_batches gradient_accumulation_steps",
    "init_from": "from_pretrained pretrained",
    "keep_best": "load_best_model_at_end metric_for_best_model",
    "keep_last": "save_total_limit",
    "loss_on": "completion_only_loss mask_prompt train_on_inputs",
    "min_lr_ratio": "min_lr",
    "max_new_tokens": "max_length max_tokens n n_predict n_tokens num_tokens",
    "model": "base_model m model_name model_name_or_path",
    "name": "experiment run_name wandb_run_name",
    "optimizer": "optim",
    "runs_dir": "o out out_dir outfile output_dir",
    "patience": "early_stopping_patience",
    "prompt": "p start",
    "recompute": "activation_checkpointing gradient_checkpointing recompute_activations",
    "report_to": "logging_dir tensorboard",
    "resume": "resume_from_checkpoint",
    "save_every": "checkpoint_every save_interval save_steps save_strategy steps_per_save",
    "schedule": "decay_lr lr_schedule lr_scheduler lr_scheduler_type scheduler",
    "seed": "random_seed",
    "seq_len": "block_size context_length ctx_len ctx_size max_length n_ctx sequence_len "
        "sequence_length",
    "steps": "iterations max_iters max_steps num_iters num_steps train_steps",
    "threads": "cpu_threads n_threads num_threads t",
    "tokenizer": "tokenizer_name",
    "warmup": "warmup_iters warmup_ratio warmup_steps",
    "weight_decay": "wd",
    "workers":
        "backend cpu cuda device devices gpu gpu_layers gpus n_gpu_layers n_workers ngl no_cuda "
        " nproc nproc_per_node num_processes num_workers use_cpu use_mps_device world_size",
    "set hidden_size=N": "d_model dim embedding_dim hidden_size n_embd",
    "set num_heads=N": "n_head n_heads num_attention_heads num_heads",
    "set num_hidden_layers=N": "depth n_layer n_layers num_blocks num_hidden_layers num_layers",
    "nothing is compiled; --kernels chooses the operators":
        "attn_implementation compile flash_attention flash_attn torch_compile",
    "leave it out, the command trains": "do_train train",
    "validation text is evaluated while it trains, see --eval-every; alone: mlxhog eval":
        "do_eval eval_only test",
    "progress comes every few seconds, and metrics.jsonl has a line every two":
        "log_every log_interval logging_steps steps_per_report",
    "--adapter lora trains an adapter": "fine_tune_type lora peft use_lora use_peft",
    "lora_rank": "lora_r",
    "lora_targets": "lora_layers lora_target_modules num_layers_to_train target_modules",
    "lora_modules_to_save": "modules_to_save",
    "there is no DoRA; --adapter lora trains low-rank matrices": "dora use_dora",
    "an adapter continues by --resume RUN or --init-from RUN": "adapter_path",
    "--adapter lora --base-weights 4bit trains beside quantized weights":
        "bits bnb load_in_4bit load_in_8bit outtype q_bits q_group_size qlora quantization "
        "quantize quantized use_qlora",
    "it trains on one machine's workers, see --workers; several machines: mlxhog cluster":
        "accelerate ddp deepspeed distributed_strategy fsdp local_rank nnodes nodes num_gpus "
        "tensor_parallel zero zero1 zero2 zero3",
    "nothing is uploaded; mlxhog convert RUN DIRECTORY --format hf writes what a hub takes":
        "hub_model_id hub_token hub_private_repo push push_to_hub upload upload_repo",
    "curves: --report-to wandb, which reads WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE": "no_wandb "
        "use_wandb wandb wandb_entity wandb_log wandb_mode wandb_project",
    "curves: mlxhog plot, or --report-to tensorboard,wandb,trackio": "comet mlflow trackio",
    "data is read as it is, by whole documents": "group_by_length packing sample_packing "
        "streaming",
    'a trained model writes text by `mlxhog generate latest --prompt "Fellow citizens"`':
        "max_new_tokens num_samples prompt temp temperature top_k top_p",
    "no code of a checkpoint is run": "trust_remote_code",
    "every run gets a folder of its own": "overwrite_output_dir",
    "a model or run is named without a flag, as in `mlxhog generate latest`":
        "checkpoint_dir ckpt ckpt_path hf_path m model model_path",
    "there is no dropout; --weight-decay and --patience are against overfitting":
        "attention_dropout dropout",
    "validation text is a part of the data, see --val": "test_file val_data valid validation_file",
    "the vocabulary is the tokenizer's: --tokenizer bpe:N": "vocab_size",
}  # fmt: skip
"""Our name, a field of a model, or advice -> names in transformers, nanoGPT and mlx-lm."""

_OURS: dict[str, list[str]] = {}
for _ours, _others in _ELSEWHERE.items():
    for _other in _others.split():
        _OURS.setdefault(_other, []).append(_ours)


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the end of an error for an unknown name: "; did you mean 'x'?", advice, or nothing."""
    plain = _plain(name)
    spelled = {_plain(each): each for each in known}
    for ours in [*[plain] * (plain in spelled), *_OURS.get(plain, ())]:
        if ours in spelled:
            return f"; did you mean {spelled[ours]!r}?"
        word, _, rest = ours.partition(" ")
        if word == "set" and {"model", "set"} <= spelled.keys():  # not of another command
            return f"; it is a field of the model: {spelled['set']} {rest}"
        if word != "set" and rest:
            return f"; {ours}"
    near = nearest(plain, spelled, cutoff=0.7)  # without dashes, which all flags have in common
    return f"; did you mean {spelled[near]!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
