"""The model file of `mlxhog.nn.torch.LanguageModel` and `mlxhog.nn.mlx.LanguageModel`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.checkpoint import formats
from mlxhog.errors import ConfigError
from mlxhog.models import families, ngrams
from mlxhog.models.families import ModelConfig
from mlxhog.models.registry import load_architecture


def opened(
    source: str | Path | ModelConfig, seed: int
) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    """Return a language model and its values: those of a checkpoint, else initial ones.

    Args:
        source: a configuration; or a name, a model file or a checkpoint's directory.
        seed: of the initial values.

    Raises:
        ConfigError: no such model; or it is no language model of tokens alone.
        CheckpointError: the weights of a checkpoint do not fit.
    """
    if not isinstance(source, str | Path):
        return _checked(source), families.init_params(source, seed)
    if not Path(source).is_dir():
        model = _checked(load_architecture(source))
        return model, families.init_params(model, seed)
    checkpoint = formats.open(Path(source))
    model, shapes = _checked(checkpoint.config), families.param_spec(checkpoint.config)
    values = {name: np.empty(spec.shape, np.float32) for name, spec in shapes.items()}
    checkpoint.copy_into(values)
    return model, values


def _checked(model: ModelConfig) -> ModelConfig:
    families.check_language_model(model)
    if ngrams.of(model) is not None:
        raise ConfigError(
            "the model has tables of n-grams, which are no parameters of a module; leave out "
            "ngram_orders"
        )
    return model
