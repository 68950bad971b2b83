"""What a checkpoint's directory may do to the program that opens or converts it: nothing."""

import os
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint.formats.converting import convert
from mlxhog.checkpoint.formats.weights import read
from mlxhog.data import tokenizers
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import CheckpointError, ConfigError, MlxhogError
from tests.pairs import each_of
from tests.saved import SMALL, saved_run

HUGE = 200 * 10**9


@pytest.fixture
def ours(tmp_path):
    """A checkpoint of ours."""
    return checkpoint.latest(saved_run(tmp_path, "a"))


@pytest.fixture
def foreign(tmp_path, ours):
    """A directory of transformers, which has no manifest."""
    convert(formats.open(ours), tmp_path / "hf", "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "chat_template.jinja"])
def test_convert_copies_nothing_from_outside_of_the_checkpoint(tmp_path, foreign, name):
    (tmp_path / "secret").write_text('{"bos_token": "x"}')
    (foreign / name).unlink(missing_ok=True)
    (foreign / name).symlink_to("../secret")
    with pytest.raises(MlxhogError, match=rf"{name} is a link to .*secret, outside"):
        convert(formats.open(foreign), tmp_path / "new", "mlxhog")
    assert not (tmp_path / "new").exists()


def test_the_cache_of_the_hub_opens_and_converts(tmp_path, foreign):
    """The layout of huggingface_hub: every file is a link to ../../blobs/DIGEST."""
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for k, file in enumerate(sorted(foreign.iterdir())):
        shutil.copy(file, repository / "blobs" / str(k))
        (snapshot / file.name).symlink_to(f"../../blobs/{k}")
    (tmp_path / "named").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "named"):
        opened = formats.open(path)
        assert opened.tokenizer() is not None
        convert(opened, tmp_path / f"of-{path.name}", "mlxhog")
    assert tokenizers.load(tmp_path / "of-named").sha256 == ByteTokenizer().sha256


def test_links_within_the_directory_and_to_tensors_elsewhere_are_followed(tmp_path, foreign):
    (foreign / "config.json").rename(foreign / "real.json")
    (foreign / "config.json").symlink_to("real.json")
    (foreign / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (foreign / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert formats.open(foreign).config.hidden_size == SMALL.hidden_size


@each_of("name", ["config.json", "tokenizer.json", "vocab.json", "model.safetensors.index.json"])
def test_a_sparse_file_of_200_gb_is_refused_unread(tmp_path, ours, name):
    foreign = tmp_path / "hf"
    convert(formats.open(ours), foreign, "hf")
    unlinked = "model.safetensors" if name.endswith("index.json") else "tokenizer.json"
    (foreign / unlinked).unlink()
    (foreign / name).touch()
    os.truncate(foreign / name, HUGE)
    message = rf"{name} has 200 GB; a file of this name has at most"
    with pytest.raises((CheckpointError, ConfigError), match=message):
        convert(formats.open(foreign), tmp_path / "new", "xlstm")


def test_one_bit_in_the_tensors_of_ours_is_noticed_when_they_are_opened(ours):
    path = ours / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has digest .*, expected "):
        formats.open(ours)


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


class Calls:
    """Pickles as a call of a function that torch allows."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@each_of("call", [Calls(torch.Tensor, (5,)), Calls(bytearray, (10**11,))], ids=["tensor", "bytes"])
def test_a_torch_file_that_makes_its_numbers_by_a_call_is_refused(tmp_path, call):
    torch.save({"a": call, "b": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt(: a has no numbers| has more than tensors)"):
        read(tmp_path / "a.pt")


def test_views_within_their_storage_are_read_exactly(tmp_path):
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = {"t": whole.t(), "rows": whole[1::2, 1:3], "last": whole[3, 5], "none": whole[:0].t()}
    torch.save(views, tmp_path / "a.pt")
    for name, array in read(tmp_path / "a.pt").items():
        np.testing.assert_array_equal(array, views[name].numpy())
