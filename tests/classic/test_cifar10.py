"""CIFAR-10's binary files: records of a class and 3072 pixels, whole or refused."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from mlxhog.classic.loaders.rows import load_cifar10
from mlxhog.errors import DataError


@pytest.fixture(scope="module")
def records():
    """520 real pieces of 32 x 32 pixels: class 0 of a temple, class 1 of a flower."""
    images = []
    for label, photo in enumerate(load_sample_images().images):
        pieces = photo[:416, :640].reshape(13, 32, 20, 32, 3).transpose(0, 2, 4, 1, 3)
        pieces = pieces.reshape(260, 3072)
        images.append(np.column_stack([np.full(260, label, np.uint8), pieces]))
    return np.random.default_rng(0).permutation(np.concatenate(images))


def test_a_folder_is_read_with_its_test_batch_and_centred_by_the_training_set(records, tmp_path):
    records[:200].tofile(tmp_path / "data_batch_1.bin")
    records[200:400].tofile(tmp_path / "data_batch_2.bin")
    records[400:].tofile(tmp_path / "test_batch.bin")
    train, test = load_cifar10(tmp_path)
    assert test is not None
    assert (train.n_rows, test.n_rows, train.n_features, train.n_classes) == (400, 120, 3072, 10)
    assert train.labels.tolist() == records[:400, 0].tolist()
    pixels = records[:, 1:] / 255
    centre = pixels[:400].mean(axis=0)
    np.testing.assert_allclose(train.features, pixels[:400] - centre, atol=1e-6)
    np.testing.assert_allclose(test.features, pixels[400:] - centre, atol=1e-6)


def test_a_single_file_has_no_test_set(records, tmp_path):
    records.tofile(tmp_path / "data_batch_1.bin")
    train, test = load_cifar10(tmp_path / "data_batch_1.bin")
    assert test is None
    assert train.labels.tolist() == records[:, 0].tolist()


def test_a_file_cut_in_the_middle_of_a_record_is_refused(records, tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(records[:3].tobytes()[:-1])
    with pytest.raises(DataError, match="cut in the middle of record 3: 9218 bytes"):
        load_cifar10(path)


def test_a_class_above_9_is_refused_with_its_record(records, tmp_path):
    wrong = records[:5].copy()
    wrong[3, 0] = 10
    wrong.tofile(tmp_path / "data_batch_1.bin")
    with pytest.raises(DataError, match=r"record 4 has class 10; wanted 0\.\.9"):
        load_cifar10(tmp_path / "data_batch_1.bin")


def test_an_empty_file_or_folder_is_refused(tmp_path):
    (tmp_path / "empty.bin").touch()
    with pytest.raises(DataError, match="cut in the middle of record 1: 0 bytes"):
        load_cifar10(tmp_path / "empty.bin")
    with pytest.raises(DataError, match=r"has no data_batch_\*.bin"):
        load_cifar10(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_cifar10(tmp_path / "missing.bin")


def test_a_packed_file_is_to_be_unpacked_first(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"x" * 3073)
    with pytest.raises(DataError, match="unpack it first"):
        load_cifar10(path)
