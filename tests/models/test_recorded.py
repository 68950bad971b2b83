"""The float64 reference and every twin compute what transformers and the xlstm package recorded."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from xlstm.blocks.slstm.cell import sLSTMCell_cuda

from mlxhog.models import checkpoint_names as translation
from mlxhog.models import families
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.checkpoint.formats import peers
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


def test_the_cuda_layout_of_an_slstm_cell_is_told_by_its_shape_and_reordered():
    package = peers.v1([0, 1])
    vanilla = peers.state(package)
    cuda = dict(vanilla)
    for name, array in vanilla.items():
        module, _, parameter = name.rpartition(".")
        if parameter in ("_recurrent_kernel_", "_bias_"):
            theirs = package.get_submodule(module)
            # Only the layout of that cell, without its kernels.
            cell = sLSTMCell_cuda(copy.deepcopy(theirs.config), skip_backend_init=True)
            external = getattr(theirs, f"{parameter}int2ext")(torch.from_numpy(array))
            cuda[name] = getattr(cell, f"{parameter}ext2int")(external).numpy()
    model = XLSTMV1Config.from_dict(dataclasses.asdict(package.config))
    for arrays in (cuda, vanilla):
        ours = translation.to_ours(arrays, model)
        assert ours.keys() == vanilla.keys()
        for name, array in vanilla.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_an_unknown_name_and_a_foreign_shape_pass_through():
    model = families.read(vars(peers.large().config))
    arrays = {
        "backbone.blocks.0.mlstm_layer.qkv_opreact.weight": np.zeros((7, 64)),
        "something": np.zeros(3),
    }
    assert translation.to_ours(arrays, model).keys() == arrays.keys()
