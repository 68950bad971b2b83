"""A torch file that was made to harm is refused in words, before memory is taken."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from mlxhog.checkpoint.formats.weights import read
from mlxhog.errors import CheckpointError
from tests.pairs import each_of


class Claim:
    """Pickles as a tensor of any offset, sizes and strides over a storage of eight floats."""

    def __init__(self, first, shape, strides):
        self.claim = (first, shape, strides)

    def __reduce__(self):
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.arange(8, dtype=torch.float32).untyped_storage(),
            dtype=torch.float32,
            _internal=True,
        )
        return torch._utils._rebuild_tensor_v2, (storage, *self.claim, False, OrderedDict())


BEYOND = {
    "one stride too long": Claim(0, (2, 4), (5, 1)),
    "offset that wraps": Claim(2**62, (4,), (1,)),
    "strides that wrap to few bytes": Claim(0, (5,), (2**62,)),
    "more elements than there are": Claim(0, (100,), (1,)),
    "offset too far": Claim(5, (4,), (1,)),
    "strides that wrap the address space": Claim(0, (5, 2), (2**62, 1)),
    "one element shown everywhere": Claim(0, (2**40,), (0,)),
}


@each_of("claim", BEYOND.values(), ids=BEYOND)
def test_a_tensor_beyond_its_numbers_is_refused_before_it_is_viewed(tmp_path, claim):
    torch.save({"a": claim}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        read(tmp_path / "a.pt")


def test_views_within_their_storage_are_read_exactly(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = {"t": whole.t(), "rows": whole[1::2, 1:3], "last": whole[3, 5], "none": whole[:0].t()}
    torch.save(views, tmp_path / "a.pt")
    for name, array in read(tmp_path / "a.pt").items():
        np.testing.assert_array_equal(array, views[name].numpy())


@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_no_array_of_the_file_is_refused(tmp_path):
    loop = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="has no state dict"):
        read(tmp_path / "a.pt")
    for tensor in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        torch.save({"a": tensor}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="a has type"):
            read(tmp_path / "a.pt")
