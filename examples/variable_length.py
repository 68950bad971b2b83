"""Padding, and lengths that are not fixed beforehand (NX-AI/xlstm #28, #94).

    python examples/variable_length.py

Rows of a batch may have any lengths, as `lengths` or as a `mask`. What stands in the padding, NaN
included, changes no output, no state and no gradient; the output there is 0. And there is no
`context_length`: the same layer takes a batch of 5 positions and then one of 956.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mlxhog.nn.torch import XLSTMBlock

LENGTHS = [9, 4, 7]


@torch.no_grad()
def main() -> dict[str, float]:
    """Run rows alone, padded with lengths, and with a mask; return the differences."""
    torch.manual_seed(0)
    block = XLSTMBlock(32, cell="slstm", batch_first=True)
    rows = [torch.randn(length, 32) for length in LENGTHS]
    alone = [block(row[None]) for row in rows]
    nothing = float("nan")
    padded = pad_sequence(rows, batch_first=True, padding_value=nothing)

    by_length, state = block(padded, lengths=LENGTHS)

    # A mask may leave out any position: here the padding stands at the beginning.
    at_end = torch.stack([row.roll(9 - n, 0) for row, n in zip(padded, LENGTHS, strict=True)])
    mask = torch.arange(9) >= 9 - torch.tensor(LENGTHS)[:, None]
    by_mask, _ = block(at_end, mask=mask)

    def apart(found: list[Tensor]) -> float:
        return max(float((y - z[0]).abs().max()) for y, (z, _) in zip(found, alone, strict=True))

    differences = {
        "lengths": apart([y[:n] for y, n in zip(by_length, LENGTHS, strict=True)]),
        "mask": apart([y[9 - n :] for y, n in zip(by_mask, LENGTHS, strict=True)]),
        "state": max(
            float((part[k] - own[0]).abs().max())
            for k, (_, last) in enumerate(alone)
            for part, own in zip(state[0], last[0], strict=True)
        ),
    }
    for name, difference in differences.items():
        print(f"{name:8} differ from each row alone by {difference:.1e} at most")

    long, _ = block(torch.randn(2, 956, 32))
    print(f"the same block takes 956 positions: {tuple(long.shape)}")
    return differences


if __name__ == "__main__":
    main()
