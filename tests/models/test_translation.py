"""Names and layouts of other packages, and back, without an element changed."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from xlstm.blocks.slstm.cell import sLSTMCell_cuda

from mlxhog.models import families, translation
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.checkpoint.formats import peers

GOLDEN = Path(__file__).parents[1] / "golden" / "xlstm"


@pytest.mark.parametrize("prefix", ["param.", "grad."])
def test_the_recorded_fused_case_splits_into_our_parameters(prefix):
    config = json.loads((GOLDEN / "large_d_fused.json").read_text())["config"]
    recorded = load_file(GOLDEN / "large_d_fused.safetensors")
    theirs = {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}
    model = families.read(config)
    ours = translation.to_ours(theirs, model)
    assert {k: v.shape for k, v in ours.items()} == {
        k: spec.shape for k, spec in families.param_spec(model).items()
    }
    singles = translation.to_xlstm(ours, model)
    for name, array in theirs.items():
        stem, _, suffix = name.rpartition(".")
        fused = next((one for one in translation.FUSED if stem.endswith(one)), "")
        parts = [
            f"{stem.removesuffix(fused)}{one}.{suffix}" for one in translation.FUSED.get(fused, ())
        ]
        stacked = np.concatenate([singles[one] for one in parts or [name]])
        np.testing.assert_array_equal(stacked, array)


def test_the_cuda_layout_of_an_slstm_cell_is_told_by_its_shape_and_reordered():
    package = peers.v1([0, 1])
    vanilla = peers.state(package)
    cuda = dict(vanilla)
    for name, array in vanilla.items():
        theirs = package.get_submodule(name.rpartition(".")[0])
        if name.endswith(("_recurrent_kernel_", "_bias_")):
            # Only the layout of that cell, without its kernels.
            cell = sLSTMCell_cuda(copy.deepcopy(theirs.config), skip_backend_init=True)
        if name.endswith("_recurrent_kernel_"):
            external = theirs._recurrent_kernel_int2ext(torch.from_numpy(array))
            cuda[name] = cell._recurrent_kernel_ext2int(external).numpy()
        elif name.endswith("_bias_"):
            external = theirs._bias_int2ext(torch.from_numpy(array))
            cuda[name] = cell._bias_ext2int(external).numpy()
    model = XLSTMV1Config.from_dict(dataclasses.asdict(package.config))
    assert_same(translation.to_ours(cuda, model), vanilla)
    assert_same(translation.to_ours(vanilla, model), vanilla)


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_an_unknown_name_and_a_foreign_shape_pass_through():
    model = families.read(vars(peers.large().config))
    arrays = {
        "backbone.blocks.0.mlstm_layer.qkv_opreact.weight": np.zeros((7, 64)),
        "something": np.zeros(3),
    }
    assert translation.to_ours(arrays, model).keys() == arrays.keys()
