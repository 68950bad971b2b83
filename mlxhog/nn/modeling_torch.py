"""A sequence of layers as a model of transformers; a checkpoint has a copy of this file.

`mlxhog convert --to hf` writes it beside weights and config.json, and then

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

loads them, with mlxhog installed. The parameters have mlxhog's names, so `mlxhog generate` reads
the same folder. Every token is computed from the whole text before it: there is no cache.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from mlxhog.models import families
from mlxhog.nn.torch import add_parameters, logits_and_state


class MlxhogConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """The fields of a model of mlxhog, and those of transformers."""

    model_type = "mad"


class MlxhogForCausalLM(GenerationMixin, PreTrainedModel):  # type: ignore[misc]  # likewise
    """A language model: tokens (B, S) in, logits (B, S, V) out."""

    config_class = MlxhogConfig

    def __init__(self, config: MlxhogConfig) -> None:
        """Make the parameters, with their initial values."""
        super().__init__(config)
        self.architecture = families.read(config.to_dict())
        add_parameters(self, families.init_params(self.architecture, seed=0))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Keep the values: `add_parameters` has set them."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Return the logits, and the mean loss of the labels, which are shifted here.

        Raises:
            ValueError: a position is masked; every position counts.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("attention_mask has a 0; this model takes rows without padding")
        logits, _ = logits_and_state(self, self.architecture, input_ids)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **unused: Any) -> dict[str, Any]:
        """Return the whole text: there is no cache."""
        return {"input_ids": input_ids}
