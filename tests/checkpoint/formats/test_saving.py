"""Tensors of a checkpoint in files: shards, and places that refuse them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.base.tensors import TensorSource
from mlxhog.checkpoint.formats import saving
from mlxhog.errors import EnvironmentLacks
from tests.pairs import each_of


def entry(n):
    array = np.zeros(n, np.float16)
    return TensorSource(array.shape, array.dtype, (array,))


@given(sizes=st.lists(st.integers(0, 40), max_size=20), limit=st.integers(1, 100))
def test_shards_hold_every_tensor_once_in_order_and_within_the_limit(sizes, limit):
    entries = {f"t{k}": entry(n) for k, n in enumerate(sizes)}
    shards = saving.shards(entries, limit)
    assert [name for shard in shards for name in shard] == list(entries)
    for shard in shards:
        held = [e.nbytes for e in shard.values() if e.nbytes]
        assert sum(held) <= limit or len(held) == 1


@each_of("refused", ["made", "made/deeper", "made/deeper/model"])
def test_a_place_that_the_system_refuses_is_named_and_nothing_is_left(tmp_path, refused):
    mkdir = Path.mkdir

    def refusing(self, *args, **kwargs):  # root may write anywhere
        if str(self).startswith(str(tmp_path / refused)):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    target = tmp_path / "made" / "deeper" / "model"
    message = f"cannot write {target}: Permission denied at {tmp_path / refused}.*another place"
    files = {"model.safetensors": {"a": entry(3)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", refusing)
        with pytest.raises(EnvironmentLacks, match=message):
            saving.write(target, files, {}, source=tmp_path)
    assert list(tmp_path.iterdir()) == []
