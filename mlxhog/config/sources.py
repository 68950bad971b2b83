"""Option values from YAML files and flags, merged over the defaults; errors for unknown names.

Every value keeps its origin (`conf.yaml:7`, `--lr`), so that an error can point at it, and all
problems are reported together.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mlxhog.config.choices import KINDS, Choice, Kind, UnknownChoice
from mlxhog.config.options import Option, options
from mlxhog.config.selection import Selection
from mlxhog.errors import MOST_SUGGESTIONS, ConfigError, did_you_mean, shown
from mlxhog.files import plain_yaml, reading
from mlxhog.files.plain_yaml import as_assignments

Config = TypeVar("Config")


@dataclass(frozen=True)
class Assignment:
    """A value of an option as written: its name (snake_case), the value, and its origin."""

    name: str
    value: object
    origin: str

    @property
    def label(self) -> str:
        """The beginning of an error about the value: the flag, or origin and name."""
        return self.origin if self.is_flag else f"{self.origin}: {self.name}"

    @property
    def is_flag(self) -> bool:
        """Whether it comes from a command line."""
        return self.origin.startswith("-")


def read_yaml(path: Path, *, named: bool = False) -> list[Assignment]:
    """Return the top-level keys of a YAML file with their line numbers.

    Args:
        path: the file.
        named: whether the user named this file, so that it may be a pipe.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        text = reading.read_text(path, named=named)
        entries = plain_yaml.entries(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except plain_yaml.NotYaml as error:
        where = path if error.line is None else f"{path}:{error.line}"
        raise ConfigError(f"{where}: not YAML: {error.problem}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; a configuration is a YAML file") from error
    if entries is None:
        raise ConfigError(f"{path}: wanted lines such as `lr: 1e-3`")
    return [Assignment(name, value, f"{path}:{line}") for name, value, line in entries]


def read_stored(path: Path) -> list[Assignment]:
    """Return the configuration file of a run, numbers of choices by their flat names.

    Raises:
        ConfigError: see `read_yaml`; or a choice lacks a number of the file.
    """
    entries = flattened(read_yaml(path))
    values = {entry.name: str(entry.value) for entry in entries}
    for kind in KINDS:
        choice = kind.known().get(values.get(kind.title, ""))
        foreign = [flat for flat, one in kind.numbers().items() if choice not in one.owners]
        if choice is not None and (wrong := [one for one in entries if one.name in foreign]):
            raise ConfigError(
                f"{wrong[0].label}: {kind.lacks(choice, wrong[0].name)}; another version of mlxhog "
                f"wrote this file, or it was edited: remove the line, or "
                f"begin a new run with the weights: mlxhog train --init-from {path.parent}"
            )
    return entries


def flattened(entries: Iterable[Assignment]) -> list[Assignment]:
    """Return values of a file with each choice as its name, followed by its numbers."""
    flat = []
    for entry in entries:
        kind = next((kind for kind in KINDS if kind.title == entry.name), None)
        try:
            name, numbers = ("", {}) if kind is None else kind.parts(entry.value)
            own = {} if kind is None else options(kind.find(name))
        except ConfigError:  # which merging it reports
            kind = None
        if kind is None or not numbers.keys() <= own.keys():
            flat.append(entry)
            continue
        flat.append(replace(entry, value=name))
        flat += [replace(entry, name=own[key].flat, value=one) for key, one in numbers.items()]
    return flat


def flat_options(cls: type, values: Mapping[str, object]) -> Mapping[str, Option]:
    """Return the options of a configuration, and the numbers of all choices by their flat names.

    Args:
        cls: a dataclass made of `option` fields, some of which are choices.
        values: of its options; a choice by its name, which gives the defaults.
    """
    specs = dict(options(cls))
    for kind in KINDS:
        choice = kind.known().get(str(values.get(kind.title)))
        own = () if choice is None else options(choice).values()
        for spec in (*(number.option for number in kind.numbers().values()), *own):
            specs[spec.flat] = replace(spec, name=spec.flat)
    return specs


def flat_values(config: object) -> dict[str, object]:
    """Return the value of every option: choices by their names, their numbers by flat names."""
    values = {name: getattr(config, name) for name in options(type(config))}
    for name, choice in list(values.items()):
        if isinstance(choice, Choice):
            values[name] = choice.name
            numbers = options(type(choice)).items()
            values |= {spec.flat: getattr(choice, number) for number, spec in numbers}
    return values


def flat_spelt(config: object) -> dict[str, object]:
    """Return the value of every option as YAML has it, numbers of choices by their flat names."""
    values = flat_values(config)
    specs = flat_options(type(config), values)
    return {name: specs[name].spell(value) for name, value in values.items()}


def resolve(
    cls: type[Config], layers: Iterable[Iterable[Assignment]], problems: Iterable[str] = ()
) -> Config:
    """Return `cls` from the layers, later ones winning over earlier ones and the defaults.

    Args:
        cls: a dataclass made of `option` fields.
        layers: values of each source, weakest first.
        problems: earlier errors; raised together with those found here.

    Raises:
        ConfigError: every unknown name, wrong value, repetition and contradiction, one per line.
    """
    wrong, specs = list(problems), options(cls)
    chosen, choices, unknown = _merged(cls, layers, wrong)
    values = {}
    for name, written in chosen.items():
        try:
            values[name] = specs[name].convert(written.value)
        except ValueError as error:
            wrong.append(f"{written.label} {error}")
    if wrong:
        raise ConfigError("\n".join(wrong)) from unknown
    return cls(**values, **choices)


def expanded(cls: type, call: str, values: Mapping[str, object]) -> dict[str, Any]:
    """Return arguments of a configuration, in which numbers of choices stand by their flat names.

    Args:
        cls: a dataclass made of `option` fields, some of which are choices.
        call: name in errors, such as "TrainConfig()".
        values: arguments.

    Raises:
        ConfigError: every unknown name, and every number that a choice lacks.
    """
    wrong: list[str] = []
    chosen, choices, unknown = _merged(cls, [written_in(call, values)], wrong)
    if wrong:
        raise ConfigError("\n".join(wrong)) from unknown
    return {**{name: written.value for name, written in chosen.items()}, **choices}


def _merged(
    cls: type, layers: Iterable[Iterable[Assignment]], wrong: list[str]
) -> tuple[dict[str, Assignment], dict[str, Choice | None], UnknownChoice | None]:
    """Return the strongest value of each option, the choices, and an error that a file may fix."""
    chosen: dict[str, Assignment] = {}
    specs = options(cls)
    selections = {
        name: Selection(spec, spec.kind)
        for name, spec in specs.items()
        if isinstance(spec.kind, Kind)
    }
    for layer in layers:
        numbers: list[Assignment] = []
        for name, written in _layer(cls, layer, wrong, selections.values()).items():
            if name in selections:
                try:
                    selections[name].name(written)
                except ConfigError as error:
                    wrong.append(str(error))
            elif name not in specs:
                numbers.append(written)
            else:
                adds = specs[name].repeats and name in chosen
                chosen[name] = _added(chosen[name], written) if adds else written
        for written in numbers:  # after the names of the same layer
            for selection in selections.values():
                selection.number(written)
    choices: dict[str, Choice | None] = {}
    unknown: UnknownChoice | None = None
    for name, selection in selections.items():
        if not selection.is_given:
            continue
        try:
            choices[name] = selection.choice()
        except ConfigError as error:
            wrong.append(str(error))
            unknown = error if isinstance(error, UnknownChoice) else unknown
    return chosen, choices, unknown


def from_keywords(cls: type[Config], call: str, keywords: Mapping[str, object]) -> Config:
    """Return `cls` from the keyword arguments of a call, such as "generate()".

    Raises:
        ConfigError: every unknown name, with the nearest one, and every wrong value.
    """
    return resolve(cls, [written_in(call, keywords)])


def written_in(call: str, keywords: Mapping[str, object]) -> list[Assignment]:
    """Return keyword arguments of a call as a layer; a path is its text."""
    return [
        Assignment(name, os.fspath(value) if isinstance(value, os.PathLike) else value, call)
        for name, value in keywords.items()
    ]


def _layer(
    cls: type,
    layer: Iterable[Assignment],
    problems: list[str],
    selections: Collection[Selection] = (),
) -> dict[str, Assignment]:
    """Return one source's values by option name; append unknown and repeated names."""
    specs, names = options(cls), dict(_spellings(cls))
    for selection in selections:
        for flat, number in selection.kind.numbers().items():
            names |= dict.fromkeys((flat, *number.option.aliases), flat)
    values: dict[str, Assignment] = {}
    for written in layer:
        name = names.get(written.name)
        if name is None:
            near = suggestion(written.name, names) if len(problems) < MOST_SUGGESTIONS else ""
            problems.append(f"{written.origin}: no option {shown(written.name)}{near}")
        elif name in values and values[name].name != written.name:
            first = values[name]
            problems.append(
                f"{written.origin}: {written.name!r} and {first.name!r} ({first.origin}) "
                "are the same option; keep one"
            )
        elif name in values and written.is_flag and name in specs and specs[name].lines:
            both = f"{values[name].value}\n{written.value}"
            values[name] = replace(written, value=both)
        elif name in values and written.is_flag and name in specs and specs[name].repeats:
            values[name] = _added(values[name], written)
        elif name in values and not written.is_flag:
            problems.append(f"{written.origin}: {name!r} stands already in {values[name].origin}")
        else:
            values[name] = written
    return values


def _added(earlier: Assignment, later: Assignment) -> Assignment:
    """Both values of an option that repeats, the later one last; `none` drops the earlier."""
    if later.value in (None, "none") or earlier.value in (None, "none"):
        return later
    try:
        both = f"{as_assignments(earlier.value)}, {as_assignments(later.value)}"
    except ValueError:
        return later  # converting it raises the error
    return Assignment(later.name, both, later.origin)


def _spellings(cls: type) -> Mapping[str, str]:
    """Every accepted snake_case spelling, mapped to the option's name."""
    names = {}
    for name, spec in options(cls).items():
        names[name] = name
        names |= dict.fromkeys(spec.aliases, name)
    return names


_THEIRS = {
    "batch_size": "micro_batch_size per_device_train_batch_size train_batch_size",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "clip": "clip_grad_norm grad_clip gradient_clip_val max_grad_norm",
    "compute_dtype": "amp bf16 dtype fp16 mixed_precision precision torch_dtype",
    "data": "corpus data_dir dataset dataset_name dataset_path train_data train_file",
    "epochs": "max_epochs n_epochs num_epochs num_train_epochs",
    "eps": "adam_eps adam_epsilon epsilon",
    "eval_every": "eval_freq eval_interval eval_steps eval_strategy evaluation_strategy",
    "eval_tokens": "eval_iters max_eval_samples per_device_eval_batch_size val_batches",
    "grad_accumulation": "accumulate_grad_batches gradient_accumulation_steps",
    "init_from": "from_pretrained pretrained",
    "keep_last": "save_total_limit",
    "lr_floor": "min_lr",
    "max_new_tokens": "max_length n_tokens num_tokens",
    "model": "model_name model_name_or_path",
    "name": "experiment run_name wandb_run_name",
    "optimizer": "optim",
    "out": "out_dir output_dir",
    "patience": "early_stopping_patience",
    "prompt": "start",
    "report_to": "logging_dir wandb_log wandb_project",
    "resume": "resume_from_checkpoint",
    "save_every": "checkpoint_every save_interval save_steps save_strategy steps_per_save",
    "schedule": "decay_lr lr_schedule lr_scheduler lr_scheduler_type scheduler",
    "seed": "random_seed",
    "seq_len": "block_size context_length ctx_len max_length sequence_length",
    "steps": "iterations max_iters max_steps num_iters num_steps train_steps",
    "threads": "cpu_threads n_threads num_threads",
    "tokenizer": "tokenizer_name",
    "warmup": "warmup_iters warmup_ratio warmup_steps",
    "weight_decay": "wd",
    "workers": "backend device devices n_workers nproc nproc_per_node num_processes num_workers "
    "world_size",
}
"""Our name -> names in transformers, nanoGPT and mlx-lm. One of these may stand twice: a command
has only one of ours."""

_FIELDS = {
    "hidden_size": "d_model dim embedding_dim hidden_size n_embd",
    "num_heads": "n_head n_heads num_attention_heads num_heads",
    "num_hidden_layers": "depth n_layer n_layers num_blocks num_hidden_layers num_layers",
}
"""Field of a model -> names of options for it elsewhere."""

_ADVICE = {
    "compile torch_compile": "nothing is compiled; --kernels chooses the operators",
    "do_train train": "leave it out, the command trains",
    "do_eval test": "held-out text is evaluated while it trains, see --eval-every",
    "grad_checkpoint gradient_checkpointing": "for less memory lower --batch-size or --seq-len",
    "log_interval logging_steps steps_per_report": "progress comes every few seconds, and "
    "metrics.jsonl has a line every two",
    "adapter_path fine_tune_type lora lora_layers lora_rank use_peft": "there is no LoRA: all "
    "weights are trained",
    "max_new_tokens num_samples prompt temperature top_k top_p": "a trained model writes text by "
    '`mlxhog generate latest --prompt "The"`',
    "ckpt model": "a model or run is named without a flag, as in `mlxhog generate latest`",
    "test_file val_data valid validation_file": "held-out text is a part of the data, see --val",
    "vocab_size": "the vocabulary is the tokenizer's: --tokenizer bpe:N",
}
"""Options elsewhere -> advice."""

_OURS: dict[str, list[str]] = {}
for _name, _others in _THEIRS.items():
    for _other in _others.split():
        _OURS.setdefault(_other, []).append(_name)
_FIELD_OF = {other: field for field, others in _FIELDS.items() for other in others.split()}
_ADVICE_ON = {name: advice for names, advice in _ADVICE.items() for name in names.split()}


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the end of an error for an unknown name: "; did you mean 'x'?", advice, or nothing.

    Args:
        name: as it was written: a flag, a YAML key or a keyword.
        known: legal names in the same spelling.
    """
    plain = _plain(name)
    spelled: Mapping[str, str] = {_plain(each): each for each in known}
    for ours in (plain, *_OURS.get(plain, ())):
        if ours in spelled:
            return f"; did you mean {spelled[ours]!r}?"
    if plain in _FIELD_OF and "model" in spelled:
        if "set" not in spelled:
            return f"; it is a field of the model: give a YAML file as {spelled['model']}"
        return f"; it is a field of the model: {spelled['set']} {_FIELD_OF[plain]}=N"
    advice = _ADVICE_ON.get(plain)
    return f"; {advice}" if advice else did_you_mean(name, known)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
