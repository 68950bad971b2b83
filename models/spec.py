"""One parameter of a model, declared once: what the arena, checkpoints and both twins read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ParamSpec:
    """Name, shape, initial values and update rules of one float32 parameter.

    Attributes:
        name: dotted name, as in a transformers checkpoint.
        shape: sizes, outermost first; a linear map is (out, in).
        init: initial values as text, read by `models/init.py`: "zeros", "ones", "constant:V",
            "normal:STD", "uniform:BOUND", "linspace:FIRST:LAST", "inverse_softplus:LOW:HIGH", whose
            softplus is log-uniform, "log_of_uniform:LOW:HIGH", "log_of_count", the logarithms of 1,
            2, ... along the last axis, or the bias of an sLSTM of NH heads, whose forget gates
            alone are not 0: "slstm_linspace:NH:FIRST:LAST" or "slstm_powerlaw:NH:EXPONENT".
        kind: "rows" where one step touches few rows (an embedding), else "dense".
        decay: True if weight decay applies.
        product: True if it only multiplies activations, which may be done in bfloat16; never a
            gate's, a norm's or a cell's.
    """

    name: str
    shape: tuple[int, ...]
    init: str
    kind: Literal["dense", "rows"] = "dense"
    decay: bool = False
    product: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for length in self.shape:
            n *= length
        return n
