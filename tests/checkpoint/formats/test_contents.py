"""Names and layouts of other packages, and back, without an element changed; shards."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from xlstm.blocks.slstm.cell import sLSTMCell_cuda

from mlxhog.checkpoint.formats import contents, saving
from mlxhog.errors import EnvironmentLacks
from mlxhog.files.tensors import Entry
from mlxhog.models import families
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.checkpoint.formats import peers
from tests.tolerances import LOGITS_F32, assert_close

GOLDEN = Path(__file__).parents[2] / "golden" / "xlstm"


@pytest.mark.parametrize("prefix", ["param.", "grad."])
def test_the_recorded_fused_case_splits_into_our_parameters_and_back(prefix: str) -> None:
    config = json.loads((GOLDEN / "large_d_fused.json").read_text())["config"]
    recorded = load_file(GOLDEN / "large_d_fused.safetensors")
    theirs = {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}
    model = families.read(config)
    ours = contents.to_ours(theirs, model)
    assert {k: v.shape for k, v in ours.items()} == {
        k: spec.shape for k, spec in families.param_spec(model).items()
    }
    back = contents.to_xlstm(ours, model, fused=True)
    assert back.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_packages_fused_model_computes_the_same_from_our_fused_arrays(use_bias: bool) -> None:
    sizes = {"use_bias": use_bias, "add_out_norm": False, "v_dim_factor": 2.0}
    single, fused = peers.large(**sizes), peers.large(**sizes, weight_mode="fused")
    model = families.read(vars(single.config))
    ours = contents.to_ours(peers.state(single), model)
    stacked = contents.to_xlstm(ours, model, fused=True)
    fused.load_state_dict({k: torch.from_numpy(v) for k, v in stacked.items()}, strict=True)
    with torch.no_grad():
        assert_close(fused(peers.TOKENS)[0].numpy(), single(peers.TOKENS)[0].numpy(), LOGITS_F32)


def test_the_cuda_layout_of_an_slstm_cell_is_told_by_its_shape_and_reordered() -> None:
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
    assert_same(contents.to_ours(cuda, model), vanilla)
    assert_same(contents.to_ours(vanilla, model), vanilla)
    assert_same(contents.to_xlstm(vanilla, model, slstm="cuda"), cuda)


def assert_same(arrays: contents.Arrays, expected: contents.Arrays) -> None:
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_an_unknown_name_and_a_foreign_shape_pass_through() -> None:
    model = families.read(vars(peers.large().config))
    arrays = {
        "backbone.blocks.0.mlstm_layer.qkv_opreact.weight": np.zeros((7, 64)),
        "something": np.zeros(3),
    }
    assert contents.to_ours(arrays, model).keys() == arrays.keys()


# -- shards ----------------------------------------------------------------------------------------


def entry(n: int) -> Entry:
    array = np.zeros(n, np.float16)
    return Entry(array.shape, array.dtype, (array,))


@given(sizes=st.lists(st.integers(0, 40), max_size=20), limit=st.integers(1, 100))
def test_shards_hold_every_tensor_once_in_order_and_within_the_limit(
    sizes: list[int], limit: int
) -> None:
    entries = {f"t{k}": entry(n) for k, n in enumerate(sizes)}
    shards = saving.shards(entries, limit)
    assert [name for shard in shards for name in shard] == list(entries)
    for shard in shards:
        held = [e.nbytes for e in shard.values() if e.nbytes]
        assert sum(held) <= limit or len(held) == 1


def test_an_entry_counts_its_bytes_in_the_file_and_not_in_memory() -> None:
    parts = (np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32))
    assert Entry((6, 3), np.dtype(np.float16), parts).nbytes == 6 * 3 * 2


@pytest.mark.parametrize("limit", [1, 10**12])
def test_a_model_without_tensors_is_one_file(limit: int) -> None:
    assert saving.shards({}, limit) == [{}]


@pytest.mark.parametrize("refused", ["made", "made/deeper", "made/deeper/model"])
def test_a_place_that_the_system_refuses_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    # Root may write anywhere, so the system's answer is put in its mouth.
    mkdir = Path.mkdir

    def refusing(self: Path, *args: object, **kwargs: object) -> None:
        if str(self).startswith(str(tmp_path / refused)):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refusing)
    target = tmp_path / "made" / "deeper" / "model"
    with pytest.raises(EnvironmentLacks) as caught:
        saving.write(target, {"model.safetensors": {"a": entry(3)}}, {}, source=tmp_path)
    said = str(caught.value)
    assert said.startswith(f"cannot write {target}: Permission denied at {tmp_path / refused}")
    assert "choose another place" in said
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 300)
    with pytest.raises(EnvironmentLacks, match=r"cannot write .*: File name too long"):
        saving.check_target(target, force=False)
