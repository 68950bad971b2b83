"""Data sets refuse what cannot be learned from, and say which row it is."""

import math

import numpy as np
import pytest

from mlxhog.classic.datasets import DenseRows, Graph, Ratings, SparseRows
from mlxhog.classic.loaders.rows import load_cifar10
from mlxhog.errors import DataError
from tests.classic.small import row_of
from tests.pairs import each_of


def three_rows(**changed) -> SparseRows:
    """Rows {0, 2}, {1} and {0, 1, 3} of four features."""
    fields = {
        "indptr": [0, 2, 3, 6],
        "indices": [0, 2, 1, 0, 1, 3],
        "values": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "labels": [1, -1, 1],
        "n_features": 4,
    }
    return SparseRows(**(fields | changed))


SIX_RATINGS = {
    "users": [0, 0, 1, 1, 2, 2],
    "items": [0, 1, 0, 1, 0, 1],
    "ratings": [1, 2, 3, 4, 5, 1],
    "n_users": 3,
    "n_items": 2,
    "lowest": 1,
    "highest": 5,
}
PATH_GRAPH = {
    "heads": [0, 1, 2],
    "tails": [1, 2, 3],
    "weights": [1.0, 0.5, 1.0],
    "n_vertices": 4,
    "terminals": {0: 0, 3: 1},
    "labels": 2,
}


def test_sparse_rows_have_the_declared_types_and_offer_degrees_and_scores():
    rows = three_rows()
    assert (rows.indptr.dtype, rows.indices.dtype) == (np.int64, np.int32)
    assert (rows.values.dtype, rows.labels.dtype) == (np.float32, np.float32)
    assert [part.tolist() for part in row_of(rows, 2)] == [[0, 1, 3], [4.0, 5.0, 6.0]]
    assert rows.degrees().tolist() == [2, 2, 1, 1]
    assert rows.scores([1, 10, 100, 1000]).tolist() == [201.0, 30.0, 6054.0]


def test_rows_that_are_taken_keep_their_order_and_may_repeat():
    rows = three_rows().take([2, 0, 2])
    assert rows.indptr.tolist() == [0, 3, 5, 8]
    assert rows.indices.tolist() == [0, 1, 3, 0, 2, 0, 1, 3]
    assert rows.values.tolist() == [4.0, 5.0, 6.0, 1.0, 2.0, 4.0, 5.0, 6.0]
    assert rows.labels.tolist() == [1.0, 1.0, 1.0]


@each_of(
    ("changed", "message"),
    [
        ({"indptr": [0, 2, 2, 6]}, "row 1 is empty"),
        ({"indptr": [0, 4, 3, 6]}, "row 1 ends before it begins"),
        ({"indptr": [0, 2, 3, 5]}, "wanted 0 to 6"),
        ({"indptr": [0, 2, 6]}, "indptr has 3 entries for 3 labels"),
        ({"indices": [0, 2, 4, 0, 1, 3]}, r"row 1 has feature 4: wanted 0\.\.3"),
        ({"indices": [0, 2, 1, -1, 1, 3]}, "row 2 has feature -1"),
        ({"indices": [0, 2, 1, 0, 3, 1]}, "row 2 has feature 1: not in ascending order"),
        ({"indices": [0, 2, 1, 0, 3, 3]}, "row 2 has feature 3: it occurs twice"),
        ({"indices": [0.0, 2, 1, 0, 1, 3]}, "must be integers"),
        ({"indices": [0, 2, 1, 0, 1, 2**31]}, r"indices\[5\] is 2147483648"),
        ({"values": [1, 2, math.nan, 4, 5, 6]}, "row 1: the value of feature 1 is nan"),
        ({"values": [1, 2, 3, 4, 5, 1e39]}, "row 2: the value of feature 3 is inf"),
        ({"values": [1, 2, 3]}, "6 indices, 3 values"),
        ({"labels": [1, math.inf, 1]}, "row 1: the label is inf"),
        ({"labels": [1, 0, 1]}, r"row 1 has label 0; .* --labels 0=-1,1=\+1"),
        ({"labels": [2, 1, 1]}, r"row 0 has label 2; .* --labels 1=-1,2=\+1"),
        ({"labels": []}, "no examples: "),
        ({"label_kind": "sings"}, "kind of labels is 'sings'"),
    ],
)
def test_sparse_rows_name_the_row_that_is_wrong(changed, message):
    with pytest.raises(DataError, match=message):
        three_rows(**changed)


def test_labels_of_a_regression_may_be_any_finite_number():
    assert three_rows(labels=[0.5, 2.0, -7.0], label_kind="numbers").labels[2] == -7.0


def test_the_end_of_a_row_may_exceed_the_beginning_of_the_next():
    assert three_rows(indices=[2, 3, 3, 0, 1, 2]).n_rows == 3


@each_of(
    ("changed", "message"),
    [
        ({"features": [[1, 2], [3, math.nan]]}, "row 1: the value of feature 1 is nan"),
        ({"features": [1, 2]}, r"wanted 2 dimension\(s\)"),
        ({"features": [[1, 2]]}, "1 rows of features, but 2 labels"),
        ({"features": np.empty((0, 2)), "labels": []}, "wanted at least one example"),
        ({"labels": [0, 3]}, r"row 1 has label 3; wanted a class of 0\.\.2"),
        ({"labels": [0.5, 1]}, "row 0 has label 0.5"),
        ({"n_classes": 1}, "labels are classes, but the number of classes is 1"),
        ({"label_kind": "signs", "n_classes": 2}, "row 0 has label 0; wanted -1"),
    ],
)
def test_dense_rows_name_the_row_that_is_wrong(changed, message):
    fields = {"features": [[1, 2], [3, 4]], "labels": [0, 2], "label_kind": "classes"}
    with pytest.raises(DataError, match=message):
        DenseRows(**({"n_classes": 3} | fields | changed))


@each_of(
    ("changed", "message"),
    [
        ({"users": [0, 0, 1, 1, 2, 3]}, r"users\[5\] is 3; wanted 0\.\.2"),
        ({"items": [-1, 1, 0, 1, 0, 1]}, r"items\[0\] is -1"),
        ({"items": [0, 1]}, "6 users, 2 items, 6 ratings"),
        ({"ratings": [1, 2, 3, 4, 6, 1]}, r"entry 4 rates 6; wanted 1 \.\. 5"),
        ({"ratings": [1, 2, 0, 4, 5, 1]}, "entry 2 rates 0"),
        ({"ratings": [1, 2, math.nan, 4, 5, 1]}, "entry 2: the rating is nan"),
        ({"users": [], "items": [], "ratings": []}, "no ratings: "),
    ],
)
def test_ratings_name_the_entry_that_is_wrong(changed, message):
    with pytest.raises(DataError, match=message):
        Ratings(
            **{
                key: np.array(v, int) if v == [] else v
                for key, v in (SIX_RATINGS | changed).items()
            }
        )


@each_of(
    ("changed", "message"),
    [
        ({"heads": [], "tails": [], "weights": []}, "the graph has no edges"),
        ({"heads": [0, 1, 4]}, r"heads\[2\] is 4; wanted 0\.\.3"),
        ({"tails": [1, 1, 3]}, "edge 1 joins vertex 1 with itself"),
        ({"weights": [1, -0.5, 1]}, "edge 1 has weight -0.5"),
        ({"weights": [1, 1, math.inf]}, "edge 2: the weight is inf"),
        ({"labels": 1}, "a cut separates at least 2"),
        ({"terminals": {4: 0}}, r"terminal 4 is not a vertex of 0\.\.3"),
        ({"terminals": {0: 2}}, r"terminal 0 has label 2; wanted 0\.\.1"),
    ],
)
def test_graphs_name_the_edge_that_is_wrong(changed, message):
    with pytest.raises(DataError, match=message):
        Graph(**(PATH_GRAPH | changed))


def test_ratings_and_graphs_that_are_right_are_taken_as_they_are():
    ratings, graph = Ratings(**SIX_RATINGS), Graph(**PATH_GRAPH)
    assert ratings.take([5, 0]).ratings.tolist() == [1.0, 1.0]
    assert (ratings.n_entries, graph.n_edges) == (6, 3)
    assert (ratings.users.dtype, graph.heads.dtype) == (np.int32, np.int32)


# -- CIFAR-10 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records():
    """520 real pieces of 32 x 32 pixels: class 0 of a temple, class 1 of a flower."""
    from sklearn.datasets import load_sample_images

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
    with pytest.raises(DataError, match="truncated in record 3: 9218 bytes"):
        load_cifar10(path)


def test_a_class_above_9_is_refused_with_its_record(records, tmp_path):
    wrong = records[:5].copy()
    wrong[3, 0] = 10
    wrong.tofile(tmp_path / "data_batch_1.bin")
    with pytest.raises(DataError, match=r"record 4 has class 10; wanted 0\.\.9"):
        load_cifar10(tmp_path / "data_batch_1.bin")


def test_an_empty_file_or_folder_is_refused(tmp_path):
    (tmp_path / "empty.bin").touch()
    with pytest.raises(DataError, match="truncated in record 1: 0 bytes"):
        load_cifar10(tmp_path / "empty.bin")
    with pytest.raises(DataError, match=r"has no data_batch_\*.bin"):
        load_cifar10(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_cifar10(tmp_path / "missing.bin")


def test_a_packed_file_is_to_be_unpacked_first(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"x" * 3073)
    with pytest.raises(DataError, match="unpack it and name"):
        load_cifar10(path)
