"""Any language model of mlxhog as a model of transformers; an export has a copy of this file.

`mlxhog convert --format hf` writes it beside weights and config.json, and then

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

loads them, with mlxhog installed. The parameters have mlxhog's names, so `mlxhog generate` reads
the same folder. Weights may be float32, bfloat16 or float16; the model computes in float32. Every
token is computed from the whole text before it: there is no cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor, cat, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from mlxhog.errors import ConfigError
from mlxhog.models import families, ngrams
from mlxhog.nn.torch import add_parameters, logits_and_state

_WITHOUT_EFFECT = frozenset(
    "use_cache cache_position is_first_iteration next_sequence_length position_ids "
    "past_key_values return_dict token_type_ids".split()
)
"""Arguments of transformers for caches and other models; here they change nothing."""


class MlxhogConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """The fields of a model of mlxhog, and those of transformers."""

    model_type = "mlxhog"


class MlxhogForCausalLM(GenerationMixin, PreTrainedModel):  # type: ignore[misc]  # likewise
    """A language model: tokens (B, S) in, logits (B, S, V) float32 out."""

    config_class = MlxhogConfig

    def __init__(self, config: MlxhogConfig) -> None:
        """Make the parameters, with their initial values."""
        super().__init__(config)
        self.architecture = model = families.read(config.to_dict())
        # Modules of torch where transformers looks for them; `add_parameters` sets their weights.
        V, d, has_bias = model.vocab_size, model.hidden_size, families.head_bias(model) is not None
        self._places = families.embedding(model), families.head(model)
        self._set_module(self._places[0], nn.Embedding(V, d))
        if self._places[0] != self._places[1]:
            self._set_module(self._places[1], nn.Linear(d, V, bias=has_bias))
        add_parameters(self, families.init_params(model, seed=0))
        self.post_init()

    def _set_module(self, parameter: str, module: nn.Module) -> None:
        """Place the module of a parameter."""
        *outer, leaf = parameter.removesuffix(".weight").split(".")
        place: nn.Module = self
        for part in outer:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(leaf, module)

    def _init_weights(self, module: Any) -> None:
        """Keep the values: `add_parameters` has set them."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding, with its `weight` (V, d)."""
        return cast(nn.Module, self.get_submodule(self._places[0].removesuffix(".weight")))

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding, whose rows are the vocabulary from now on."""
        resized = replace(self.architecture, vocab_size=value.weight.shape[0])
        before, after = map(ngrams.param_spec, (self.architecture, resized))
        if before != after:
            raise ConfigError(
                f"n-gram tables are made for {self.architecture.vocab_size} tokens, not for "
                f"{resized.vocab_size}; train with mlxhog train --init-from and --resize-vocab"
            )
        self.architecture = resized
        self._set_module(self._places[0], value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, with `weight` (V, d) and `bias` (V,); the embedding if it is tied."""
        return cast(nn.Module, self.get_submodule(self._places[1].removesuffix(".weight")))

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self._set_module(self._places[1], new_embeddings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Return the logits, and the mean loss of the labels, which are shifted here.

        Args:
            input_ids: (B, S) integers in [0, V).
            attention_mask: (B, S), 0 at padding, on either side of a row; its logits are 0.
            labels: (B, S); -100 is no label.
            num_items_in_batch: number of labels of the whole step, of which this is a part; the
                loss is then the sum over them (`Trainer` with gradient accumulation).
            **kwargs: arguments of transformers for models with a cache.

        Raises:
            TypeError: an argument that this model does not have.
            ValueError: a row of the mask has no token.
            DataError: an id is outside the vocabulary.
            ConfigError: a row has more tokens than the model has positions.
        """
        for name, value in kwargs.items():
            if name not in _WITHOUT_EFFECT and value is not None and value is not False:
                raise TypeError(f"{type(self).__name__} has no argument {name}; leave it out")
        if attention_mask is None or bool(attention_mask.all()):
            logits, _ = logits_and_state(self, self.architecture, input_ids)
        else:
            logits = self._without_padding(input_ids, attention_mask.bool())
        loss = None
        if labels is not None:
            predicted, next_tokens = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            if num_items_in_batch is None:
                loss = cross_entropy(predicted, next_tokens)
            else:
                loss = cross_entropy(predicted, next_tokens, reduction="sum") / num_items_in_batch
        return CausalLMOutput(loss=loss, logits=logits)

    def _without_padding(self, input_ids: Tensor, counts: Tensor) -> Tensor:
        """Return the logits of rows with padding, each computed alone: a state cannot skip it."""
        if not counts.any(dim=1).all():
            raise ValueError("a row of attention_mask has no token")
        rows = [
            logits_and_state(self, self.architecture, ids[used][None])[0][0]
            for ids, used in zip(input_ids, counts, strict=True)
        ]
        logits = rows[0].new_zeros((*input_ids.shape, rows[0].shape[-1]))
        logits[counts] = cat(rows)
        return logits

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the whole text: there is no cache."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}
