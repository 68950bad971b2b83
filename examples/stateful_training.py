"""Stateful training: carry the state from one segment of a stream to the next (NX-AI/xlstm #96).

    python examples/stateful_training.py

A state goes in and comes out of every call, and no call changes the one that it was given. Detached
between two optimizer steps, it lets a model use what lies further back than a segment, while
gradients end at the segment's beginning.

The task: every 40 positions or so a stream sets one of 4 values, and every position asks for the
value that was set last. Segments have 16 positions, so most of them do not contain the answer.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mlxhog.nn.torch import SLSTM, detach

VALUES, ROWS, SEGMENT, SEGMENTS = 4, 16, 16, 240


class Reader(nn.Module):
    """Names the value that was set last."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.embed = nn.Embedding(VALUES + 1, 32)
        self.memory = SLSTM(32, 32, num_heads=2, batch_first=True)
        self.head = nn.Linear(32, VALUES)

    def forward(self, symbols: Tensor, state: object = None) -> tuple[Tensor, object]:
        """Map symbols (B, S) to logits (B, S, VALUES), and the state to the next."""
        output, state = self.memory(self.embed(symbols), state)
        return self.head(output), state


def stream(random: np.random.Generator, positions: int) -> tuple[Tensor, Tensor]:
    """Symbols, of which VALUES sets nothing, and the value that was set last; (ROWS, positions)."""
    symbols = random.integers(0, VALUES, (ROWS, positions))
    quiet = random.random((ROWS, positions)) > 1 / 40
    quiet[:, 0] = False
    last_set = np.maximum.accumulate(np.where(quiet, 0, np.arange(positions)), axis=1)
    answers = np.take_along_axis(symbols, last_set, axis=1)
    symbols[quiet] = VALUES
    return torch.from_numpy(symbols), torch.from_numpy(answers)


def train(carry: bool) -> float:
    """Train on a stream, segment by segment; return the share of right answers on its last part."""
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    symbols, answers = stream(np.random.default_rng(0), SEGMENT * SEGMENTS)
    state, right = None, []
    for begin in range(0, symbols.shape[1], SEGMENT):
        x, wanted = symbols[:, begin : begin + SEGMENT], answers[:, begin : begin + SEGMENT]
        logits, state = model(x, state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = detach(state) if carry else None
        right.append(float((logits.argmax(-1) == wanted).float().mean()))
    return float(np.mean(right[-40:]))


def main() -> dict[str, float]:
    """Train with the state carried on, and with one that begins anew in every segment."""
    shares = {"carried": train(carry=True), "anew": train(carry=False)}
    print(f"right answers with the state carried on: {shares['carried']:.0%}")
    print(f"right answers with a new state in every segment: {shares['anew']:.0%}")
    return shares


if __name__ == "__main__":
    main()
