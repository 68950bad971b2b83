"""The float64 reference and every twin compute what transformers and the xlstm package recorded."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.golden import FOLDER, NAMES
from tests.models.operators import METAL
from tests.models.recorded import SIDES, disagreements
from tests.models.twins import EXACT
from tests.pairs import each_of


@pytest.mark.slow
@pytest.mark.parametrize("side", [*SIDES, *METAL])
@each_of("name", NAMES)
def test_a_recorded_case_is_reproduced_tensor_by_tensor(side, name):
    twin = (SIDES | METAL)[side]
    if side in METAL and not name.startswith(("mlstm", "slstm", "components")):
        return
    assert list(disagreements(name, twin)) == []


@pytest.mark.slow
@each_of("what", ["grad.backbone.blocks.1.ffn.proj_up.weight", "hidden.1", "logits_f64", "loss",
                  "state.1.n", "state.9.C"])  # fmt: skip
def test_a_wrong_or_unknown_tensor_is_named(tmp_path, what):
    name = "hf_d_generate"
    tensors = load_file(FOLDER / f"{name}.safetensors")
    wrong = tensors.get(what, np.zeros(3, np.float32)).copy()
    wrong.reshape(-1)[-1] += 0.02 * max(1.0, np.abs(wrong).max())
    save_file(tensors | {what: wrong}, tmp_path / f"{name}.safetensors")
    shutil.copy(FOLDER / f"{name}.json", tmp_path)
    (line,) = disagreements(name, EXACT, tmp_path)
    assert line.startswith(f"{what}: ")
