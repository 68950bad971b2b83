"""The mLSTM cell of both twins reproduces the recorded cell however the sequence is cut."""

import numpy as np
import pytest

from tests.models.golden import CELLS, cell_case
from tests.models.twins import TWINS, Twin
from tests.pairs import in_pairs
from tests.tolerances import CELL_EXTREME_F32, CELL_F32, STATE_F32, assert_close

all_twins = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
TOLERANCE = {name: CELL_F32 for name in CELLS} | {"mlstm_cell_d_extreme": CELL_EXTREME_F32}
all_cells = pytest.mark.parametrize("name", CELLS)


@in_pairs(twin=TWINS, name=CELLS, chunk_size=[1, 7, 64])
def test_the_chunk_size_does_not_change_the_output(twin: Twin, name: str, chunk_size: int) -> None:
    case = cell_case(name)
    h, _ = twin.op(
        "mlstm_cell", *case.inputs.values(), chunk_size=chunk_size, eps=case.eps, state=case.state
    )
    assert_close(h, case.h("recurrent_f64"), TOLERANCE[name])


@all_twins
@all_cells
def test_one_position_at_a_time_gives_the_recorded_output_and_state(twin: Twin, name: str) -> None:
    case = cell_case(name)
    state = case.state
    outputs = []
    for t in range(case.inputs["q"].shape[1]):
        now = [value[:, t : t + 1] for value in case.inputs.values()]
        h, state = twin.op("mlstm_cell", *now, chunk_size=16, eps=case.eps, state=state)
        outputs.append(h)
    assert_close(np.concatenate(outputs, 1), case.h("recurrent_f64"), TOLERANCE[name])
    assert state is not None
    for part, recorded in zip(state, case.last_state("recurrent_f64"), strict=True):
        assert_close(part, recorded, STATE_F32)
