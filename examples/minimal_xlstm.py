"""A minimal example that runs: a small xLSTM of two blocks, trained and read (NX-AI/xlstm #107).

    python examples/minimal_xlstm.py

No configuration objects, no CUDA, no fixed context length: two blocks between an embedding and a
head, on a text of one line. Reading from it goes on with the state, one character a step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mlxhog.nn.torch import XLSTMBlock

TEXT = "the quick brown fox jumps over the lazy dog. " * 8
LETTERS = sorted(set(TEXT))


class XLSTM(nn.Module):
    """An mLSTM block and an sLSTM block between an embedding and a head."""

    def __init__(self, width: int = 32) -> None:
        """Make the layers."""
        super().__init__()
        self.embed = nn.Embedding(len(LETTERS), width)
        self.blocks = nn.ModuleList(
            XLSTMBlock(width, cell=cell, index=k, of=2, batch_first=True)
            for k, cell in enumerate(("mlstm", "slstm"))
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(LETTERS)))

    def forward(self, tokens: Tensor, states: Any = (None, None)) -> tuple[Tensor, list[Any]]:
        """Map tokens (B, S) to logits (B, S, letters), and a state per block to the next."""
        x, after = self.embed(tokens), []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, state)
            after.append(state)
        return self.head(x), after


def continuation(model: XLSTM, prompt: str, letters: int) -> str:
    """Read `letters` more, each the likeliest after the last."""
    logits, states = model(torch.tensor([[LETTERS.index(c) for c in prompt]]))
    text = ""
    for _ in range(letters):
        best = int(logits[0, -1].argmax())
        text += LETTERS[best]
        logits, states = model(torch.tensor([[best]]), states)
    return text


def main() -> tuple[float, float, str]:
    """Train on the text, then continue a prompt; return the first and the last loss, and that."""
    torch.manual_seed(0)
    model, tokens = XLSTM(), torch.tensor([[LETTERS.index(c) for c in TEXT]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        logits, _ = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits[0], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        text = continuation(model, "the quick ", 34)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps")
    print(f"the quick |{text}")
    return losses[0], losses[-1], text


if __name__ == "__main__":
    main()
