"""What every form of the mLSTM cell has to reproduce of a recorded case."""

from __future__ import annotations

from typing import Any

from tests.models.golden import CellCase
from tests.models.twins import Twin
from tests.tolerances import GRADIENT_F32, assert_close


def assert_recorded_gradients(twin: Twin, case: CellCase) -> None:
    """Compare the gradient of every input, and of a given initial state."""
    inputs = dict(case.inputs)
    if case.state is not None:
        inputs |= dict(zip("Cnm", case.state, strict=True))
    weight = twin.array(case.h_weight)

    def weighted_sum(ops: Any, arrays: Any) -> Any:
        state = None if case.state is None else tuple(arrays[letter] for letter in "Cnm")
        sequence = [arrays[letter] for letter in "qkvif"]
        h, _ = ops.mlstm_cell(*sequence, chunk_size=case.chunk_size, eps=case.eps, state=state)
        return (h * weight).sum()

    grads = twin.op_grads(weighted_sum, inputs)
    for form in case.forms():
        for letter in "qkvif":
            recorded = case.grad(form, letter)
            assert_close(grads[letter], recorded, GRADIENT_F32, label=f"{form} {letter}")
        if case.state is not None:
            for letter in "Cn":
                recorded = case.recorded[f"{form}.grad_{letter.lower()}_initial"]
                assert_close(grads[letter], recorded, GRADIENT_F32, label=f"{form} {letter}")
