"""CIFAR-10 in its binary form: records of a class and 3072 pixels.

A record is 3073 bytes: the class, 0 to 9, then 1024 bytes each of red, green and blue, row by row.
Format: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.datasets import DenseRows
from mlxhog.errors import DataError

PIXELS, CLASSES = 3072, 10
_RECORD = PIXELS + 1
_TEST_FILE = "test_batch.bin"
_PACKED = (".gz", ".tgz", ".bz2", ".tar", ".zip")


def load_cifar10(train: Path, test: Path | None = None) -> tuple[DenseRows, DenseRows | None]:
    """Read images as pixels from 0 to 1, less the mean of each pixel over the training set.

    Args:
        train: a file, or the folder of data_batch_1.bin .. data_batch_5.bin, all of which are read.
        test: a file; where `train` is a folder, its test_batch.bin unless another is named.

    Raises:
        DataError: a file is missing, cut in the middle of a record, or has a class above 9; the
            message names the record.
    """
    files = [train]
    if train.is_dir():
        files = sorted(train.glob("data_batch_*.bin"))
        if not files:
            raise DataError(f"{train} has no data_batch_*.bin; name the folder of CIFAR-10's files")
        if test is None and (train / _TEST_FILE).exists():
            test = train / _TEST_FILE
    records = np.concatenate([_records(path) for path in files])
    images = _pixels(records)
    centre = images.mean(axis=0, dtype=np.float64).astype(np.float32)
    images -= centre
    rows = DenseRows(images, records[:, 0].astype(np.float32), "classes", CLASSES)
    if test is None:
        return rows, None
    records = _records(test)
    images = _pixels(records)
    images -= centre
    return rows, DenseRows(images, records[:, 0].astype(np.float32), "classes", CLASSES)


def _pixels(records: NDArray[np.uint8]) -> NDArray[np.float32]:
    return records[:, 1:] * np.float32(1 / 255)


def _records(path: Path) -> NDArray[np.uint8]:
    """(images, 3073) uint8, checked."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix in _PACKED:
        raise DataError(f"{path} is packed; unpack it first, and name the .bin file or its folder")
    whole, rest = divmod(len(content), _RECORD)
    if rest or not whole:
        raise DataError(
            f"{path} is cut in the middle of record {whole + 1}: {len(content)} bytes are no "
            f"multiple of {_RECORD}; fetch it again (the binary version of CIFAR-10 is wanted)"
        )
    records = content.reshape(whole, _RECORD)
    illegal = records[:, 0] >= CLASSES
    if illegal.any():
        first = int(np.argmax(illegal))
        raise DataError(
            f"{path} record {first + 1} has class {records[first, 0]}; wanted 0..{CLASSES - 1} "
            "(is this the binary version of CIFAR-10?)"
        )
    return records
