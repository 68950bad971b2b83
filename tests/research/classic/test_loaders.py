"""Files of data are read as they are meant, or refused with the file and the line in error."""

import bz2
import gzip

import numpy as np
import pytest

from mlxhog.errors import ConfigError, DataError
from mlxhog.research.classic.loaders import load_graph, load_ratings, load_svmlight, parse_terminals
from tests.pairs import each_of


def written(folder, text, name="data"):
    path = folder / name
    path.write_bytes(text.encode())
    return path


rows, ratings = load_svmlight, load_ratings


def graph(path):
    return load_graph(path, "0=0,1=1")


def apart(path):
    return load_graph(path, "10=0,30=2")


def by_file(path):
    return load_graph(path, str(written(path.parent, "# who leads\n10 0\n30 2\n", "terminals")))


MOVIELENS = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n7,10,3,851868750\n1,10,4,9\n"
RATED = {"users": [0, 1, 0], "items": [1, 0, 0], "ratings": [2.5, 3, 4], "n_users": 2, "n_items": 2}
LINE = {"heads": [0, 1], "tails": [1, 2], "terminals": {0: 0, 2: 2}, "labels": 3}


@each_of(
    ("load", "text", "expected"),
    [
        (rows, "# a heading\r\n+1 qid:3 1:.5 7:-2e-1 # the first\r\n\r\n-1\t2:1\r\n",
         {"indptr": [0, 2, 3], "indices": [0, 6, 1], "values": [0.5, np.float32(-0.2), 1.0],
          "labels": [1, -1], "n_features": 7, "label_kind": "signs"}),
        (rows, "1 0:1 9:1\n", {"indices": [0, 9], "n_features": 10}),  # counted from 0
        (rows, "2 1:1\n1 1:2\n1 1:3\n", {"labels": [1, -1, -1]}),
        (ratings, MOVIELENS, RATED),
        (ratings, MOVIELENS.replace("\n", "\r\n"), RATED),
        (ratings, MOVIELENS.partition("\n")[2].replace(",", "::"), RATED),
        (ratings, "% KONECT\n1 31 2.5\n7 10 3\n\n1 10 4\n", RATED),
        (ratings, "1\t31\t2.5\tx\n7\t10\t3\ty\n1\t10\t4\tz\n", RATED),
        (ratings, "1 2 90\n1 1000000000000 0\n", {"ratings": [90, 0], "items": [0, 1]}),
        (apart, "# u v w\n10 20 2.5\n20 30 1\n", {**LINE, "weights": [2.5, 1], "n_vertices": 3}),
        (by_file, "10,20\n20,30\n", {**LINE, "weights": [1, 1]}),
    ],
)  # fmt: skip
def test_a_file_is_read_as_it_is_meant(tmp_path, load, text, expected):
    data = load(written(tmp_path, text))
    for name, value in expected.items():
        actual = getattr(data, name)
        assert (actual.tolist() if isinstance(actual, np.ndarray) else actual) == value, name


def test_what_scikit_learn_writes_is_read_back_packed_or_not_and_a_cut_file_is_refused(
    digits, tmp_path
):
    matrix, labels, path = digits
    for suffix, pack in (("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)):
        packed = tmp_path / f"digits.svm{suffix}"
        packed.write_bytes(pack(path.read_bytes()))
        data = load_svmlight(packed)
        assert data.indptr.tolist() == matrix.indptr.tolist()
        assert data.indices.tolist() == matrix.indices.tolist()
        assert data.values.tolist() == matrix.data.astype(np.float32).tolist()
        assert data.labels.tolist() == (labels - 1).tolist()
        if suffix:
            packed.write_bytes(packed.read_bytes()[:5000])
            with pytest.raises(DataError, match="is truncated or damaged"):
                load_svmlight(packed)


def test_a_packed_file_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path):
    packed = tmp_path / "a.svm.bz2"
    packed.write_bytes(bz2.compress(b"1 1:1\n" * (3 << 20)))
    with pytest.raises(
        DataError, match=r"a\.svm\.bz2 has more than 16,.* bytes of text; unpack it"
    ):
        load_svmlight(packed)


SVM, RATING, EDGE = "wanted LABEL", "wanted USER ITEM RATING", "wanted VERTEX VERTEX"
ROWS = (
    "-1", "-1 3:1 2:1", "-1 3:1 3:1", "-1 3:nan", "-1 3:1e39", "-1 3:", "-1 inf:1",
    "-1 1.5:1", "-1 4294967296:1", "-1 1:2:3", "spam 1:2", "-1 1_0:2", "inf 1:2",
)  # fmt: skip


@each_of(
    ("load", "text", "message"),
    [
        *((rows, f"1 1:1\n{line}\n", f":2: {line!r}; {SVM}") for line in ROWS),
        *((ratings, f"1 2 3\n{line}\n", f":2: {line!r}; {RATING}")
          for line in ("1 3 nan", "1 2.5 3", "-1 2 3", "1 2", "bob 2 3")),
        *((graph, f"0 1 1\n{line}\n", f":2: {line!r}; {EDGE}")
          for line in ("1 1 1", "1 2 -1", "1 2 inf", "1 2", "1 -2 1")),
        (rows, "1 1:1\n\n# comment\n2 x\n", f":4: '2 x'; {SVM}"),
        (rows, "1 1:1\n2 1:1\n3 1:1\n", r"has 3 labels \(1, 2, 3\); wanted two"),
        (rows, "# nothing\n\n", "has no data; wanted lines of"),
        (rows, "", "has no data"),
        (rows, "1 1:1\n\0\n", "is binary"),
        (ratings, "user item rating\n", "has no data; wanted lines of USER ITEM RATING"),
        (apart, "10 20 1\n", "terminal 30 is not a vertex"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named_with_the_form_of_a_line(tmp_path, load, text, message):
    with pytest.raises((DataError, ConfigError), match=message):
        load(written(tmp_path, text))


def test_terminals_may_be_a_file_below_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "10 0\n30 2\n", "terminals")
    assert parse_terminals("~/terminals") == {10: 0, 30: 2}


@each_of(
    ("text", "message"),
    [
        ("0=0,1=0", "with two or more labels"),
        ("0=0,1", "--terminals is '0=0,1'; wanted VERTEX=LABEL"),
        ("missing.txt", "--terminals is 'missing.txt'"),
    ],
)
def test_terminals_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_terminals(text)
