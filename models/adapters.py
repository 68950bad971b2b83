"""Low-rank adapters (LoRA): trainable matrices beside the frozen weights of a model.

    y = W x + b + alpha / rank * B A dropout(x)         A (rank, in), B (out, rank)

W and b, and all other parameters, are frozen; A begins as torch.nn.Linear, B at zero, so an adapter
begins as the model without it. Names of parameters are PEFT's: `NAME.lora_A.weight` beside
`NAME.weight`. Layers need no code for it: `ForwardContext.linears` adds the product.

Source: Hu et al. 2021, LoRA, arXiv:2106.09685; PEFT 0.17, `tuners/lora`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from mlxhog.config.components import ADAPTERS, Component, ComponentRegistry
from mlxhog.config.options import option
from mlxhog.errors import ConfigError, did_you_mean

if TYPE_CHECKING:  # both load NumPy, which a help does not need
    from numpy.typing import NDArray

    from mlxhog.models.spec import ParamSpec

A, B = ".lora_A.weight", ".lora_B.weight"
WEIGHT = ".weight"
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.\d+\.")


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter."""
    return name.endswith((A, B))


@ADAPTERS.register
@dataclass(frozen=True, kw_only=True)
class LoRA(Component):
    """The adapter of a model; a `ModelConfig` with one declares its matrices, and freezes the rest.

    A target is the name of a linear layer, or its last parts ("q", "ffn.proj_up"), or a pattern
    with `*`. Without targets all linear layers of the blocks have one that are wider than the rank,
    but those of gates and decays. Modules to save are trained whole, such as "lm_head", and have no
    matrices: PEFT has none beside them.
    """

    name: ClassVar[str] = "lora"
    about: ClassVar[str] = "low-rank matrices beside frozen linear layers (Hu et al. 2021)"
    registry: ClassVar[ComponentRegistry] = ADAPTERS

    rank: int = option(8, "rank of the matrices", low=1, flat="lora_rank")
    alpha: float | None = option(
        None, "the product's factor is alpha / rank; auto: twice the rank",
        above=0, below=1e6, none="auto", flat="lora_alpha",
    )  # fmt: skip
    dropout: float = option(0.0, "dropout rate of their inputs", low=0, below=1,
                            flat="lora_dropout")  # fmt: skip
    targets: tuple[str, ...] = option(
        (), "layers, such as q,v,ffn.proj_up or *.out_proj; default: all linear layers of the "
        "blocks but those of gates and decays", many=True, flat="lora_targets",
    )  # fmt: skip
    modules_to_save: tuple[str, ...] = option(
        (), "modules that are trained whole, such as lm_head or embeddings",
        many=True, flat="lora_modules_to_save",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the hyperparameters, and split names at commas."""
        super().__post_init__()
        for field in ("targets", "modules_to_save"):
            names = ",".join(getattr(self, field)).replace(",", " ").split()
            object.__setattr__(self, field, tuple(names))

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def title(self) -> str:
        """The adapter without its layers, for messages."""
        return f"an adapter of rank {self.rank} and alpha {self.scale * self.rank:g}"

    def matrices(self, spec: ParamSpec) -> Iterator[ParamSpec]:
        """Declare A and B of a weight, if it is a target."""
        from mlxhog.models.spec import ParamSpec, bound

        stem = spec.name.removesuffix(WEIGHT)
        if not self._is_target(spec, stem):
            return
        (out, inputs), autocast = spec.shape, spec.autocast
        for name, shape, init in (
            (stem + A, (self.rank, inputs), bound(inputs)), (stem + B, (out, self.rank), "zeros"),
        ):  # fmt: skip
            yield ParamSpec(name, shape, init, decay=True, autocast=autocast)

    def _is_target(self, spec: ParamSpec, stem: str) -> bool:
        if not is_linear(spec) or self._is_saved(stem):
            return False
        if self.targets:
            return any(matches(stem, one) for one in self.targets)
        return spec.autocast and self.rank < min(spec.shape)

    def frozen(self, spec: ParamSpec) -> ParamSpec:
        """Return a parameter of the model, frozen unless it is the adapter's or trained whole."""
        saved = self._is_saved(spec.name.rpartition(".")[0])
        return replace(spec, trainable=saved or is_adapter(spec.name))

    def _is_saved(self, module: str) -> bool:
        return any(matches(module, one) for one in self.modules_to_save)

    def check(self, specs: Mapping[str, ParamSpec]) -> None:
        """Refuse targets that match nothing or are saved, and a rank above the sides of a matrix.

        So is a module to save with modules inside that are not, which would be trained in part.

        `specs` are the parameters of a model with this adapter.

        Raises:
            ConfigError: the message names the layers that there are.
        """
        linear = {
            name.removesuffix(WEIGHT): spec for name, spec in specs.items() if is_linear(spec)
        }
        modules = {name.rpartition(".")[0] for name in specs if not is_adapter(name)}
        for what, given, known in (
            ("targets", self.targets, linear), ("modules_to_save", self.modules_to_save, modules),
        ):  # fmt: skip
            for one in given:
                if not any(matches(name, one) for name in known):
                    ends = dict.fromkeys(_BLOCK.split(name)[-1] for name in known)
                    raise ConfigError(
                        f"lora: {what} has {one!r}, which no layer of this model is called; there "
                        f"are {', '.join(ends)}{did_you_mean(one, ends)}"
                    )
        for name in filter(self._is_saved, modules):
            inside = [one for one in modules if one.startswith(f"{name}.")]
            if apart := [one for one in inside if not self._is_saved(one)]:
                ends = dict.fromkeys(_BLOCK.split(one)[-1] for one in sorted(apart))
                own = _BLOCK.split(name)[-1]
                raise ConfigError(
                    f"lora: modules_to_save has {own}, of which only a part would be trained "
                    f"whole: {', '.join(ends)} are modules of their own; name those you mean, or "
                    f"all: {own},{own}.*"
                )
        for name, spec in linear.items():
            is_meant = name + A in specs or not (self.targets or any(map(is_adapter, specs)))
            if is_meant and self.rank > min(spec.shape):
                raise ConfigError(
                    f"lora: rank {self.rank} is above the smaller side of {name} {spec.shape}; set "
                    f"it to at most {min(spec.shape)}, or name other targets"
                )
        if not any(map(is_adapter, specs)):
            raise ConfigError(
                "lora: no linear layer is left to adapt; name other targets, or fewer "
                "modules_to_save"
            )


def is_linear(spec: ParamSpec) -> bool:
    """Whether a parameter is the weight of a linear layer inside a block."""
    return (
        len(spec.shape) == 2
        and spec.name.endswith(WEIGHT)
        and not is_adapter(spec.name)
        and _BLOCK.search(spec.name) is not None
    )


def matches(name: str, target: str) -> bool:
    """Whether the name of a layer, or its last parts, are a target, which may be a pattern."""
    return fnmatchcase(f".{name}", f"*.{target}")


def merged(
    adapter: LoRA, name: str, w: NDArray[Any], tensors: Mapping[str, NDArray[Any]]
) -> NDArray[Any]:
    """Return W + alpha / rank * B A in float32 of a parameter (out, in); any other as it is."""
    import numpy as np

    stem = name.removesuffix(WEIGHT)
    if stem + A not in tensors:
        return w
    b, a = (np.asarray(tensors[stem + end], np.float32) for end in (B, A))
    return w.astype(np.float32) + np.float32(adapter.scale) * (b @ a)
