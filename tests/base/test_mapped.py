"""Mapped files: views without copies, copies piece by piece, numbers that are not finite found."""

import errno
import json
import os

import numpy as np
import pytest

from mlxhog.base import mapped, tensors
from mlxhog.errors import CheckpointError
from tests.pairs import each_of

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(mapped, "CHUNK_BYTES", 64)


@each_of("stored", mapped.FLOATS)
@each_of("held", mapped.FLOATS)
def test_a_copy_holds_every_number_in_the_wanted_type(tmp_path, stored, held):
    array = RANDOM.standard_normal((13, 7)).astype(stored)
    tensors.write(tmp_path / "x", {"x": array})
    out = np.empty(array.shape, held)
    assert mapped.copy(tensors.read(tmp_path / "x")["x"], out)
    np.testing.assert_array_equal(out, array.astype(held))


@each_of("dtype", mapped.FLOATS)
@each_of("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype, bad):
    for place in range(40):
        array = np.ones(40, dtype)
        assert mapped.is_finite(array)
        array[place] = bad
        assert not mapped.is_finite(array)
        assert not mapped.copy(array, np.empty(40, np.float32))
    assert mapped.is_finite(np.empty(0, dtype))
    if dtype != mapped.BFLOAT16:
        assert mapped.is_finite(np.full(100, np.finfo(dtype).max, dtype))


@each_of("read", [
    lambda view: view.tolist(),
    lambda view: [x for part in mapped.chunks(view) for x in part.tolist()],
    lambda view: mapped.in_memory(view).tolist(),
    lambda view: [x for part in mapped.chunks(view.reshape(5, 20).T) for x in part.tolist()],
])  # fmt: skip
def test_what_is_in_memory_is_what_a_view_shows_and_needs_no_file_any_more(tmp_path, read):
    tensors.write(tmp_path / "x", {"x": np.arange(100, dtype=np.float32)})
    view = tensors.read(tmp_path / "x")["x"]
    assert sorted(read(view)) == list(range(100))
    assert mapped.is_mapped(view)
    assert not mapped.is_mapped(mapped.in_memory(view))
    array = np.arange(3.0)
    assert mapped.in_memory(array) is array


@pytest.mark.parametrize(
    "read",
    [mapped.in_memory, mapped.is_finite, lambda view: mapped.is_finite(view.reshape(100, 200).T)],
)
def test_a_file_that_is_shortened_while_it_is_read_is_an_error_and_no_bus_error(tmp_path, read):
    tensors.write(tmp_path / "x", {"x": np.ones(20_000, np.float32)})
    view = tensors.read(tmp_path / "x")["x"]
    os.truncate(tmp_path / "x", 30_000)
    with pytest.raises(CheckpointError, match="shortened to 30,000 bytes while it was in use"):
        read(view)


def with_header(x, n_bytes=0):
    header = json.dumps({"x": x}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(n_bytes)


FOREIGN = r"x.safetensors is missing.*; copy it again"
SHAPES = [(0, 2**62), (2**62, 0), (0, 2**64 - 1), (0, 2**31, 2**31), (0,) * 70]


@each_of(
    ("content", "message"),
    [
        *((content, FOREIGN) for content in (
            b"", b"\x08", b"not a tensor file at all", (10**9).to_bytes(8, "little") + b"{}")),
        (with_header({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, 4),
         "x has type F8_E4M3, expected float32"),
        *((with_header({"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}),
           "x has shape .*, which no array can have") for shape in SHAPES),
    ],
)  # fmt: skip
def test_a_foreign_file_and_a_tensor_that_numpy_lacks_are_refused(tmp_path, content, message):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        tensors.read(tmp_path / "x.safetensors")


def test_an_io_error_in_a_write_is_not_called_a_full_disk_and_leaves_no_file(tmp_path, monkeypatch):
    def broken(source):
        yield source
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(mapped, "chunks", broken)
    with pytest.raises(OSError, match="Input/output") as caught:
        tensors.write(tmp_path / "x.safetensors", {"x": np.zeros(3, np.float32)})
    assert caught.value.errno == errno.EIO
    assert not list(tmp_path.iterdir())
