"""Train xLSTM Large at any length, with its state.

Answers huggingface/transformers #47013 and NX-AI/xlstm #93.

    python -m pip install transformers
    python examples/train_mode.py

Modes "train" without last states and "train_with_padding" crash in transformers and in the xlstm
package, "train" takes multiples of the chunk size only, and a cache does not survive a gradient.
Here is one mode: `XLSTMBlock(variant="large")` takes the block's own state dict and any length,
gives its state back while it trains, and the trained weights go back to where they came from.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import xLSTMConfig, xLSTMForCausalLM

from mlxhog.nn.torch import XLSTMBlock

WIDTH, HEADS, BLOCKS, VOCABULARY = 64, 2, 2, 50


def theirs() -> Any:
    """A model of transformers, in the mode that computes every length."""
    return xLSTMForCausalLM(
        xLSTMConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_heads=HEADS,
            num_hidden_layers=BLOCKS,
            chunkwise_kernel="chunkwise--native_autograd",
            sequence_kernel="native_sequence__native",
            step_kernel="native",
            mode="inference",
            autocast_kernel_dtype="float32",
        )
    )


class Trainable(nn.Module):
    """The embedding, final norm and head of a model of transformers around blocks of ours."""

    def __init__(self, model: Any) -> None:
        """Take over a model's weights."""
        super().__init__()
        self.model, config = model, model.config
        self.blocks = nn.ModuleList()
        for index, block in enumerate(model.backbone.blocks):
            ours = XLSTMBlock(
                config.hidden_size,
                variant="large",
                num_heads=config.num_heads,
                index=index,
                of=config.num_hidden_layers,
                batch_first=True,
            )
            ours.load_state_dict(block.state_dict())
            self.blocks.append(ours)

    def forward(self, tokens: Tensor, states: Any = None) -> tuple[Tensor, list[Any]]:
        """Map tokens (B, S), any S, to logits, and a state per block to the next."""
        x, after = self.model.backbone.embeddings(tokens), []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, state = block(x, state)
            after.append(state)
        logits = self.model.lm_head(self.model.backbone.out_norm(x))
        cap = self.model.config.output_logit_soft_cap
        return cap * torch.tanh(logits / cap), after

    def give_back(self) -> Any:
        """Return the model of transformers with the blocks as they are now."""
        for ours, block in zip(self.blocks, self.model.backbone.blocks, strict=True):
            block.load_state_dict(ours.state_dict())
        return self.model


def main() -> dict[str, float]:
    """Train at a length that is no multiple of anything, then compare logits."""
    torch.manual_seed(0)
    model = theirs()
    ours = Trainable(model)
    trained = [p for block in ours.blocks for p in block.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    tokens = torch.randint(VOCABULARY, (3, 38))
    losses = []
    for _ in range(8):
        logits, states = ours(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} on rows of {tokens.shape[1] - 1} tokens")
    print(f"state of a block while training: {[tuple(part.shape) for part in states[0][0]]}")
    with torch.no_grad():
        logits, _ = ours(tokens)
        wanted = ours.give_back()(tokens, use_cache=False).logits
    apart = float((logits - wanted).abs().max())
    print(f"logits of transformers with the trained weights differ by {apart:.1e} at most")
    return {"first": losses[0], "last": losses[-1], "apart": apart}


if __name__ == "__main__":
    main()
