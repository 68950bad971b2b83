"""Files of data are read as they are meant, or refused with the file and the line in error."""

import bz2
import gzip

import numpy as np
import pytest

from mlxhog.classic.loaders import (
    load_graph,
    load_ratings,
    load_svmlight,
    parse_label_map,
    parse_rating_range,
    parse_terminals,
)
from mlxhog.errors import ConfigError, DataError
from tests.pairs import each_of


def written(folder, text, name="rows.svm"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


# -- svmlight --------------------------------------------------------------------------------------


def test_what_scikit_learn_writes_is_read_back(digits):
    matrix, labels, path = digits
    rows, test = load_svmlight(path, labels={0: -1, 2: 1})
    assert test is None
    assert rows.indptr.tolist() == matrix.indptr.tolist()
    assert rows.indices.tolist() == matrix.indices.tolist()
    assert rows.values.tolist() == matrix.data.astype(np.float32).tolist()
    assert rows.labels.tolist() == (labels - 1).tolist()
    assert rows.label_kind == "signs"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_files_are_unpacked_and_a_cut_one_is_refused(digits, tmp_path, suffix, pack):
    plain, _ = load_svmlight(digits[2], label_kind="numbers")
    packed = tmp_path / f"digits.svm{suffix}"
    packed.write_bytes(pack(digits[2].read_bytes()))
    rows, _ = load_svmlight(packed, label_kind="numbers")
    assert rows.indices.tolist() == plain.indices.tolist()
    assert rows.values.tolist() == plain.values.tolist()
    packed.write_bytes(packed.read_bytes()[:5000])
    with pytest.raises(DataError, match="is truncated or damaged"):
        load_svmlight(packed)


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


# -- ratings and graphs ---------------------------------------------------------------------------

MOVIELENS_CSV = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n7,10,3,851868750\n1,10,4,9\n"
MOVIELENS_DAT = "1::31::2.5::1260759144\n7::10::3::851868750\n1::10::4::9\n"


@each_of(
    "text",
    [
        MOVIELENS_CSV,
        MOVIELENS_DAT,
        MOVIELENS_CSV.replace("\n", "\r\n"),
        "% KONECT\n1 31 2.5\n7 10 3\n\n1 10 4\n",
        "1\t31\t2.5\tx\n7\t10\t3\ty\n1\t10\t4\tz\n",
    ],
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
    wide = written(tmp_path, "1 2 90\n1 3 0\n")
    assert load_ratings(wide, lowest=0, highest=100)[0].ratings.tolist() == [90.0, 0.0]


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


# -- what is refused -------------------------------------------------------------------------------


def graph(path):
    return load_graph(path, "0=0,1=1")


SVM, RATING, EDGE = "wanted -1 or", "wanted USER ITEM RATING", "wanted VERTEX VERTEX"
ROWS = [
    *(("1 1:1\n{}\n", line) for line in (
        "-1", "0 1:1", "-1 3:1 2:1", "-1 3:1 3:1", "-1 3:nan", "-1 3:1e39", "-1 3:", "-1 inf:1",
        "-1 1.5:1", "-1 4294967296:1", "-1 1:2:3", "spam 1:2", "-1 1_0:2", "inf 1:2",
    )),
]  # fmt: skip
RATINGS = ["1 3 6", "1 2.5 3", "-1 2 3", "1 2", "bob 2 3"]
EDGES = ["1 1 1", "1 2 -1", "1 2 inf", "1 2", "1 -2 1"]


@each_of(
    ("load", "text", "message"),
    [
        *((load_svmlight, text.format(line), f":2: {line!r}; {SVM}") for text, line in ROWS),
        *((load_ratings, f"1 2 3\n{line}\n", f":2: {line!r}; {RATING}") for line in RATINGS),
        *((graph, f"0 1 1\n{line}\n", f":2: {line!r}; {EDGE}") for line in EDGES),
        (load_svmlight, "1 1:1\n\n# comment\n2 2:1\n", f":4: '2 2:1'; {SVM}.*--labels 0=-1"),
        (load_ratings, "1 2 6\n", r"in 1 \.\. 5 \(another scale: --rating-range"),
        (load_svmlight, "# nothing\n\n", "has no data; wanted lines of"),
        (load_svmlight, "", "has no data"),
        (load_svmlight, "1 1:1\n\0\n", "is binary"),
        (load_ratings, "user item rating\n", "has no data; wanted lines of USER ITEM RATING"),
    ],
)
def test_a_malformed_line_is_named_with_the_form_of_a_line(tmp_path, load, text, message):
    with pytest.raises(DataError, match=message):
        load(written(tmp_path, text))


@each_of(
    ("read", "text", "message"),
    [
        (parse_label_map, "0", "wanted OLD=NEW"),
        (parse_label_map, "0=1,0=-1", "each label once"),
        (parse_rating_range, "5,1", "wanted LOW,HIGH"),
        (parse_rating_range, "1,5,9", "wanted LOW,HIGH"),
        (parse_terminals, "0=0,1=0", "with two or more labels"),
        (parse_terminals, "0=0,1", "--terminals is '0=0,1'; wanted VERTEX=LABEL"),
        (parse_terminals, "missing.txt", "--terminals is 'missing.txt'"),
    ],
)
def test_an_option_that_cannot_be_read_is_refused(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_terminal_outside_of_the_graph_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="terminal 7 is not a vertex"):
        load_graph(written(tmp_path, "0 1 1\n"), "0=0,7=1")
