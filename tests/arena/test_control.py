"""Record rings: one writer, one reader, and what becomes of a reader that is late."""

import numpy as np

from mlxhog.arena.control import CAPACITY, RING_BYTES, RecordKind, Ring


def append(ring, versions):
    for version in versions:
        ring.append(kind=RecordKind.STEP, worker=1, version=version, loss=version / 2)


def test_records_come_once_and_in_order_and_a_late_reader_loses_the_oldest_only():
    data = np.zeros(RING_BYTES, np.uint8)
    writer = Ring(data)
    append(writer, [9])
    reader = Ring(data)  # it begins with what comes next
    append(writer, range(3))
    assert reader.drain()["version"].tolist() == [0, 1, 2]
    append(writer, range(3, 5))
    records = reader.drain()
    assert records["version"].tolist() == [3, 4]
    assert records["loss"].tolist() == [1.5, 2.0]
    assert len(reader.drain()) == 0
    append(writer, range(CAPACITY + 10))
    # The oldest slot that is left may be the one being written, so it is not read.
    assert reader.drain()["version"].tolist() == list(range(11, CAPACITY + 10))
