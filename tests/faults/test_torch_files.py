"""A torch file that was made to harm is refused in words; it neither crashes nor fills the memory.

Files whose fault would be a crash are read in another process.
"""

import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mlxhog.checkpoint.formats.weights import read
from mlxhog.errors import CheckpointError
from tests.pairs import each_of

READ = """
import sys
from pathlib import Path
import torch  # its libraries are larger than the limit allows for
from tests.processes import limit_memory
limit_memory(4 << 30, more=True)
from mlxhog.errors import CheckpointError
from mlxhog.checkpoint.formats.weights import read
for path in sys.argv[1:]:
    try:
        for array in read(Path(path)).values():
            array.copy()
    except CheckpointError as error:
        print(error)
"""


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


def said(*paths):
    """What reading files in another process says of each; it has to end by itself."""
    process = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, (
        f"{process.returncode}: {process.stdout} {process.stderr[-2000:]}"
    )
    return process.stdout.splitlines()


@pytest.mark.slow
def test_strides_that_wrap_the_address_space_and_a_dict_that_holds_itself_are_refused(tmp_path):
    torch.save({"a": Claim(0, (5, 2), (2**62, 1))}, tmp_path / "archive.pt")
    loop = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    archive, itself = said(*(tmp_path / f"{name}.pt" for name in ("archive", "loop")))
    assert "4611686018427387904, 1" in archive
    assert "has no state dict" in itself


BEYOND = {
    "one stride too long": Claim(0, (2, 4), (5, 1)),
    "offset that wraps": Claim(2**62, (4,), (1,)),
    "strides that wrap to few bytes": Claim(0, (5,), (2**62,)),
    "more elements than there are": Claim(0, (100,), (1,)),
    "offset too far": Claim(5, (4,), (1,)),
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


PICKLES = [
    b"\x80\x02}q\x00(K\x01", b"\x80\x02.", b"\x80\x02K\x01.", b"\x80\x02cos\nsystem\n.",
    b"\x80\x02]q\x00h\x05.", b"\x80\x02X\xff\xff\xff\xff.", b"\x80\x05\x95" + b"\xff" * 8,
    b"", b"(" * 100_000,
]  # fmt: skip


@each_of(
    ("change", "how", "message"),
    [
        *((lambda name, data, p=p: p if name.endswith("data.pkl") else data, {}, "a.pt|b.pt")
          for p in PICKLES),
        (lambda _, data: data, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
    ],
)  # fmt: skip
def test_a_damaged_archive_is_refused_before_it_is_unpacked(tmp_path, change, how, message):
    torch.save({"a": torch.arange(64.0), "b": torch.arange(64.0)}, tmp_path / "a.pt")
    copy = tmp_path / "b.pt"
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(copy, "w", **how) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    with pytest.raises(CheckpointError, match=message):
        read(copy)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_tensor_that_is_no_array_of_the_file_is_refused(tmp_path):
    for tensor in (torch.eye(3).to_sparse(), torch.empty(3, device="meta")):
        torch.save({"a": tensor}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="a has type"):
            read(tmp_path / "a.pt")


@each_of("shape", [(0, 2**62), (2**62, 0), (0, 2**31, 2**31), (0,) * 70])
def test_a_tensor_without_numbers_whose_shape_no_array_has_is_refused(tmp_path, shape):
    torch.save({"a": torch.empty(shape)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a has shape .*, which no array"):
        read(tmp_path / "a.pt")
