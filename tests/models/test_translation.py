"""Names and layouts of other packages, and back, without an element changed."""

import copy
import dataclasses

import numpy as np
import torch
from xlstm.blocks.slstm.cell import sLSTMCell_cuda

from mlxhog.models import families, translation
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.checkpoint.formats import peers


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
