"""Files of data are read as they are meant, or refused with the file and the line in error."""

import bz2
import gzip
import subprocess

import numpy as np
import pytest

from mlxhog.classic.loaders import (
    load_cifar10,
    load_graph,
    load_ratings,
    load_svmlight,
    parse_label_map,
    parse_rating_range,
)
from mlxhog.errors import ConfigError, DataError
from tests.pairs import each_of


def written(folder, text, name="rows.svm"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


# -- svmlight --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Real data, half zeros: is the digit even? With the file that scikit-learn makes of them."""
    from scipy.sparse import csr_matrix
    from sklearn.datasets import dump_svmlight_file, load_digits

    data = load_digits()
    labels = np.where(data.target % 2 == 0, 1, -1)
    path = tmp_path_factory.mktemp("digits") / "digits.svm"
    dump_svmlight_file(data.data, labels, str(path), zero_based=False, comment="even digits")
    return csr_matrix(data.data), labels, path


def test_what_scikit_learn_writes_is_read_back(digits):
    matrix, labels, path = digits
    rows, test = load_svmlight(path)
    assert test is None
    assert rows.indptr.tolist() == matrix.indptr.tolist()
    assert rows.indices.tolist() == matrix.indices.tolist()
    assert rows.values.tolist() == matrix.data.tolist()
    assert rows.labels.tolist() == labels.tolist()
    assert rows.label_kind == "signs"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_are_unpacked(digits, tmp_path, suffix, pack):
    plain, _ = load_svmlight(digits[2])
    packed = tmp_path / f"digits.svm{suffix}"
    packed.write_bytes(pack(digits[2].read_bytes()))
    rows, _ = load_svmlight(packed)
    assert rows.indices.tolist() == plain.indices.tolist()
    assert rows.values.tolist() == plain.values.tolist()


def test_comments_query_numbers_signs_and_line_ends_of_windows_are_understood(tmp_path):
    text = "# a heading\r\n+1 qid:3 1:.5 7:-2e-1 # the first\r\n\r\n-1\t2:1\r\n"
    rows, _ = load_svmlight(written(tmp_path, text))
    assert rows.indptr.tolist() == [0, 2, 3]
    assert rows.indices.tolist() == [0, 6, 1]
    assert rows.values.tolist() == [np.float32(0.5), np.float32(-0.2), 1.0]
    assert rows.labels.tolist() == [1.0, -1.0]


def test_features_count_from_1_unless_a_feature_0_occurs_in_one_of_the_files(tmp_path):
    from_1 = written(tmp_path, "1 1:1 3:1\n", "a.svm")
    from_0 = written(tmp_path, "1 0:1 9:1\n", "b.svm")
    assert load_svmlight(from_1)[0].indices.tolist() == [0, 2]
    train, test = load_svmlight(from_1, from_0)
    assert test is not None
    assert (train.indices.tolist(), test.indices.tolist()) == ([1, 3], [0, 9])
    assert (train.n_features, test.n_features) == (10, 10)


def test_labels_are_mapped_as_the_user_says(tmp_path):
    path = written(tmp_path, "2 1:1\n1 1:2\n3 1:3\n")
    rows, _ = load_svmlight(path, labels=parse_label_map("1=-1,2=+1,3=-1"))
    assert rows.labels.tolist() == [1.0, -1.0, -1.0]


@each_of(
    ("text", "message"),
    [
        ("1 1:1\n-1 2:1\n0 1:1\n", r":3: label 0; wanted -1 or \+1. Map .* --labels 0=-1"),
        ("1 1:1\n\n# comment\n2 2:1\n", ":4: label 2;"),
        ("1 1:1\n-1\n", ":2: '-1'; wanted LABEL FEATURE:VALUE"),
        ("1 1:1\n-1 3:1 2:1\n", ":2: feature 2 after 3; sort"),
        ("1 1:1\n-1 3:1 3:1\n", ":2: feature 3 after 3; sort .* sum the values of equal"),
        ("1 1:1\n-1 3:nan\n", ":2: feature 3 has value nan"),
        ("1 1:1\n-1 3:1e39\n", r":2: feature 3 has value 1e\+39"),
        ("1 1:1\n-1 3:\n", ":2: '-1 3:'; wanted LABEL"),
        ("1 1:1\n-1 3\n", ":2: '-1 3'; wanted LABEL FEATURE:VALUE"),
        ("1 1:1\n-1 inf:1\n", ":2: feature inf; wanted a whole number"),
        ("1 1:1\n-1 -3:1\n", ":2: feature -3; wanted a whole number"),
        ("1 1:1\n-1 1.5:1\n", ":2: feature 1.5; wanted a whole number"),
        ("1 1:1\n-1 : 2:1\n", ":2: '-1 : 2:1'; wanted LABEL"),
        ("1 1:1\n-1 1:2:3\n", ":2: '-1 1:2:3'; wanted LABEL"),
        ("1 1:1\n-1 4294967296:3\n", r":2: feature 4.29497e\+09; wanted a whole number below"),
        ("1 1:1\n1,7 1:2\n", ":2: '1,7 1:2'; wanted LABEL"),
        ("1 1:1\nspam 1:2\n", ":2: 'spam 1:2'; wanted LABEL"),
        ("1 1:1\n-1 1_0:2\n", ":2: '-1 1_0:2'; wanted LABEL"),
        ("1 1:1\n-1 1:1e\n", ":2: '-1 1:1e'; wanted LABEL"),
        ("1 1:1\ninf 1:2\n", ":2: label inf; wanted a finite number"),
        ("1 1:1\n-1 2:0.2", ":2: the last line has no line end"),
        ("# nothing\n\n", "has no data; wanted lines of LABEL"),
        ("", "is empty"),
        ("1 1:1\n\0\n", "is binary"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_svmlight(written(tmp_path, text))


@each_of("share", [0.2, 0.5, 0.9])
def test_a_file_cut_in_the_middle_is_refused_with_the_line(digits, tmp_path, share):
    content = digits[2].read_bytes()
    cut = content[: int(share * len(content))]
    path = tmp_path / "cut.svm"
    path.write_bytes(cut)
    with pytest.raises(DataError, match=rf"cut.svm:{cut.count(bytes([10])) + 1}: .* be truncated"):
        load_svmlight(path)


def test_a_compressed_file_cut_in_the_middle_is_refused(digits, tmp_path):
    packed = gzip.compress(digits[2].read_bytes())
    path = tmp_path / "cut.svm.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="is truncated or damaged"):
        load_svmlight(path)


def test_the_way_to_add_a_missing_line_end_works_where_the_user_stands(tmp_path):
    path = written(tmp_path, "1 1:1\n-1 2:0.2", "my rows.svm")
    with pytest.raises(DataError, match="line end") as caught:
        load_svmlight(path)
    subprocess.run(str(caught.value).partition("add one: ")[2], shell=True, check=True)
    assert len(load_svmlight(path)[0].labels) == 2


@each_of(
    ("text", "message"),
    [
        ("0", "wanted OLD=NEW"),
        ("0=a", "wanted OLD=NEW"),
        ("0=1,0=-1", "maps 0 twice"),
    ],
)
def test_a_malformed_label_map_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_label_map(text)


def test_labels_that_are_not_mapped_or_not_to_signs_are_refused(tmp_path):
    path = written(tmp_path, "0 1:1\n1 1:1\n2 1:1\n")
    with pytest.raises(DataError, match=":3: label 2; add this label to --labels"):
        load_svmlight(path, labels={0.0: -1.0, 1.0: 1.0})
    with pytest.raises(ConfigError, match=r"maps to \[0.0, 1.0\]"):
        load_svmlight(path, labels={0.0: 0.0, 1.0: 1.0, 2.0: 1.0})


# -- ratings and graphs ---------------------------------------------------------------------------

MOVIELENS_CSV = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n7,10,3,851868750\n1,10,4,9\n"
MOVIELENS_DAT = "1::31::2.5::1260759144\n7::10::3::851868750\n1::10::4::9\n"
NETFLIX = "31:\n1,2.5,2005-09-06\n10:\n7,3,2005-05-13\n1,4,2005-10-19\n"


@each_of(
    "text",
    [
        MOVIELENS_CSV,
        MOVIELENS_DAT,
        NETFLIX,
        NETFLIX.replace("\n", "\r\n"),
        "% KONECT\n1 31 2.5\n7 10 3\n\n1 10 4\n",
        "1\t31\t2.5\tx\n7\t10\t3\ty\n1\t10\t4\tz\n",
    ],
    ids=["MovieLens csv", "MovieLens dat", "prize", "prize, Windows", "spaces", "tabs"],
)
def test_ratings_of_every_form_are_the_same(tmp_path, text):
    ratings, test = load_ratings(written(tmp_path, text))
    assert test is None
    assert ratings.users.tolist() == [0, 1, 0]
    assert ratings.items.tolist() == [1, 0, 0]
    assert ratings.ratings.tolist() == [2.5, 3.0, 4.0]
    assert (ratings.n_users, ratings.n_items) == (2, 2)


def test_a_training_and_a_test_file_name_users_and_items_alike(tmp_path):
    train, test = load_ratings(
        written(tmp_path, "5 1000000000000 1\n3 7 2\n", "a"), written(tmp_path, "9 7 3\n", "b")
    )
    assert test is not None
    assert (train.users.tolist(), test.users.tolist()) == ([1, 0], [2])
    assert (train.items.tolist(), test.items.tolist()) == ([1, 0], [0])
    assert (test.n_users, test.n_items) == (3, 2)


@each_of(
    ("text", "message"),
    [
        ("1 2 3\n1 3 6\n", r":2: rating 6; wanted 1 \.\. 5. .* --rating-range"),
        ("# a\n\n1 2 3\n1 3 0\n", ":4: rating 0;"),
        ("1 2 3\n1 2.5 3\n", ":2: item 2.5; wanted a whole number"),
        ("1 2 3\n-1 2 3\n", ":2: user -1; wanted a whole number"),
        ("1 2 3\n1 2\n", ":2: '1 2'; wanted USER ITEM RATING"),
        ("1 2 3\n1 2 nan\n", ":2: '1 2 nan'; wanted USER"),
        ("1 2 3\nbob 2 3\n", ":2: 'bob 2 3'; wanted USER"),
        ("1 2 3\n1 3 4", ":2: the last line has no line end"),
        ("user item rating\n", "has no data; wanted lines of USER ITEM RATING"),
        ("7:\n1,2,2005-01-01\n2,9,2005-01-01\n", ":3: rating 9"),
        ("7:\n1,2,2005-01-01\n8:\n2\n", ":4: '2'; wanted USER,RATING,DATE below"),
    ],
)
def test_a_malformed_rating_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_ratings(written(tmp_path, text))


def test_ratings_of_another_scale_are_read_when_it_is_said(tmp_path):
    path = written(tmp_path, "1 2 90\n1 3 0\n")
    assert load_ratings(path, lowest=0, highest=100)[0].ratings.tolist() == [90.0, 0.0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_real_graph_is_read_as_it_is(tmp_path, packed):
    """Zachary's karate club, 34 members and 78 ties with weights, as networkx ships it."""
    import networkx  # while this runs, and not while tests are collected

    club = networkx.karate_club_graph()
    text = "# u v w\n" + "".join(f"{u + 5} {v + 5} {w}\n" for u, v, w in club.edges(data="weight"))
    path = tmp_path / ("club.txt.gz" if packed else "club.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    graph = load_graph(path, "5=0,38=1")
    assert (graph.n_vertices, graph.n_edges, graph.labels) == (34, 78, 2)
    assert graph.terminals == {0: 0, 33: 1}
    ends = zip(graph.heads.tolist(), graph.tails.tolist(), graph.weights.tolist(), strict=True)
    assert list(ends) == list(club.edges(data="weight"))


def test_edges_without_weights_weigh_1_and_terminals_may_be_a_file(tmp_path):
    terminals = written(tmp_path, "# who leads\n10 0\n30 2\n", "terminals.txt")
    graph = load_graph(written(tmp_path, "10,20\n20,30\n"), str(terminals))
    assert graph.weights.tolist() == [1.0, 1.0]
    assert (graph.terminals, graph.labels) == ({0: 0, 2: 2}, 3)


@each_of(
    ("text", "message"),
    [
        ("0 1 1\n1 1 1\n", ":2: an edge from a vertex to itself"),
        ("0 1 1\n1 2 -1\n", ":2: weight -1; the cost of a cut"),
        ("0 1 1\n1 2 inf\n", ":2: '1 2 inf'; wanted VERTEX"),
        ("0 1 1\n1 -2 1\n", ":2: vertex -2; wanted a whole number"),
        ("0 1 1\n1\n", ":2: '1'; wanted VERTEX VERTEX"),
        ("# no edges\n", "has no data; wanted lines of VERTEX"),
    ],
)
def test_a_malformed_edge_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_graph(written(tmp_path, text), "0=0,1=1")


@each_of(
    ("terminals", "message"),
    [
        ("0=0,7=1", "terminal 7 is not a vertex"),
        ("0=0,1=0", "has one label only"),
        ("0=0,1", "--terminals has '1'; wanted VERTEX=LABEL"),
        ("missing.txt", "--terminals has 'missing.txt'"),
    ],
)
def test_terminals_that_cannot_be_cut_apart_are_refused(tmp_path, terminals, message):
    with pytest.raises(ConfigError, match=message):
        load_graph(written(tmp_path, "0 1 1\n"), terminals)


def test_a_rating_range_is_two_numbers_by_a_comma():
    assert parse_rating_range("0.5,5") == (0.5, 5.0)
    for text in ("5", "5,1", "a,b", "1,5,9"):
        with pytest.raises(ConfigError, match="wanted LOW,HIGH"):
            parse_rating_range(text)


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
