"""Tensors of a checkpoint in files: shards, and places that refuse them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.base.tensors import TensorSource
from mlxhog.checkpoint.formats import saving
from mlxhog.errors import EnvironmentLacks


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


@pytest.mark.parametrize("refused", ["made", "made/deeper", "made/deeper/model"])
def test_a_place_that_the_system_refuses_is_named_and_nothing_is_left(
    tmp_path, monkeypatch, refused
):
    # Root may write anywhere, so the system's answer is put in its mouth.
    mkdir = Path.mkdir

    def refusing(self, *args, **kwargs):
        if str(self).startswith(str(tmp_path / refused)):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refusing)
    target = tmp_path / "made" / "deeper" / "model"
    with pytest.raises(EnvironmentLacks) as caught:
        saving.write(target, {"model.safetensors": {"a": entry(3)}}, {}, source=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"cannot write {target}: Permission denied at {tmp_path / refused}")
    assert "choose another place" in message
    assert list(tmp_path.iterdir()) == []
