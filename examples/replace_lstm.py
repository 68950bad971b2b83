"""Use mLSTM or sLSTM where a network has `nn.LSTM` (NX-AI/xlstm #108).

    python examples/replace_lstm.py

    self.rnn = nn.LSTM(input_size, hidden_size, num_layers, dropout=dropout)
    self.rnn = MLSTM(input_size, hidden_size, num_layers, dropout=dropout)       # that is all

Shapes in and out are those of `nn.LSTM`, (S, B, width) unless `batch_first`. What differs: the
state is not (h_n, c_n) but a tuple per layer, to be handed back as it came; and layers read in one
direction only.

The task of the comparison: one of 16 positions is marked, and the answer is the symbol that stood
there.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlxhog.nn.torch import MLSTM, SLSTM

SYMBOLS, POSITIONS, HIDDEN, STEPS = 8, 16, 32, 100


class Classifier(nn.Module):
    """A classifier of sequences around any recurrent layer of (S, B, width)."""

    def __init__(self, rnn: nn.Module) -> None:
        """Take the layer."""
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (S, B, SYMBOLS + 1) to logits (B, SYMBOLS)."""
        output, _ = self.rnn(x)
        logits: Tensor = self.head(output[-1])
        return logits


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """One-hot symbols beside the mark, (S, B, SYMBOLS + 1), and the symbol at the mark, (B,)."""
    symbols, marked = torch.randint(SYMBOLS, (POSITIONS, rows)), torch.randint(POSITIONS, (rows,))
    x = torch.zeros(POSITIONS, rows, SYMBOLS + 1)
    x[..., :SYMBOLS] = torch.eye(SYMBOLS)[symbols]
    x[marked, torch.arange(rows), SYMBOLS] = 1.0
    return x, symbols[marked, torch.arange(rows)]


def accuracy(layer: Callable[..., nn.Module]) -> float:
    """Train a classifier around a layer; return the share of right answers on new sequences."""
    torch.manual_seed(0)
    model = Classifier(layer(SYMBOLS + 1, HIDDEN, 2, dropout=0.05))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        x, answers = batch(32)
        loss = nn.functional.cross_entropy(model(x), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        x, answers = batch(512)
        return float((model(x).argmax(-1) == answers).float().mean())


def main() -> dict[str, float]:
    """Train the same network around each layer."""
    layers = {"nn.LSTM": nn.LSTM, "SLSTM": SLSTM, "MLSTM": MLSTM}
    shares = {name: accuracy(layer) for name, layer in layers.items()}
    for name, share in shares.items():
        print(f"{name:8} {share:4.0%} of the answers are right (by chance {1 / SYMBOLS:.0%})")
    return shares


if __name__ == "__main__":
    main()
