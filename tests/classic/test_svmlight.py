"""svmlight files: what scikit-learn writes is read back, and what is wrong is named by its line."""

import bz2
import gzip
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic.loaders.rows import load_svmlight, parse_label_map
from mlxhog.classic.loaders.text import blocks
from mlxhog.errors import ConfigError, DataError
from tests.pairs import each_of


def written(folder: Path, text: str, name: str = "rows.svm") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


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


def test_files_of_many_blocks_are_the_same_rows(digits, monkeypatch):
    whole, _ = load_svmlight(digits[2])
    monkeypatch.setattr(blocks, "__defaults__", (700,))
    rows, _ = load_svmlight(digits[2])
    assert rows.indptr.tolist() == whole.indptr.tolist()
    assert rows.values.tolist() == whole.values.tolist()


def test_targets_of_a_regression_stay_as_they_are(tmp_path):
    from sklearn.datasets import dump_svmlight_file, load_breast_cancer

    data = load_breast_cancer()
    path = tmp_path / "cancer.svm"
    dump_svmlight_file(data.data, data.data[:, 0], str(path), zero_based=False)
    rows, _ = load_svmlight(path, label_kind="numbers")
    assert rows.labels.tolist() == data.data[:, 0].astype(np.float32).tolist()


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
        ("1 1:1\n-1 2:1\n0 1:1\n", r":3: label 0; .* --labels -1=-1,0=-1,1=\+1"),
        ("1 1:1\n\n# comment\n2 2:1\n", r":4: label 2; .* --labels 1=-1,2=\+1"),
        ("1 1:1\n-1\n", ":2: label -1 without features"),
        ("1 1:1\n-1 3:1 2:1\n", ":2: feature 2 after 3; sort"),
        ("1 1:1\n-1 3:1 3:1\n", ":2: feature 3 occurs twice"),
        ("1 1:1\n-1 3:nan\n", ":2: feature 3 has value 'nan'"),
        ("1 1:1\n-1 3:1e39\n", ":2: feature 3 has value '1e39'"),
        ("1 1:1\n-1 3:\n", ":2: feature 3 has value ''"),
        ("1 1:1\n-1 3\n", ":2: '3'; wanted FEATURE:VALUE"),
        ("1 1:1\n-1 -3:1\n", ":2: '-3:1'; wanted FEATURE:VALUE"),
        ("1 1:1\n-1 1.5:1\n", ":2: '1.5:1'; wanted FEATURE:VALUE"),
        ("1 1:1\n-1 : 2:1\n", ":2: ':'; wanted FEATURE:VALUE"),
        ("1 1:1\n-1 1:2:3\n", ":2: feature 1 has value '2:3'"),
        ("1 1:1\n-1 4294967296:3\n", ":2: feature 4294967296; wanted less"),
        ("1 1:1\n1,7 1:2\n", ":2: the label is '1,7'.*choose one"),
        ("1 1:1\nspam 1:2\n", ":2: the label is 'spam'"),
        ("1 1:1\ninf 1:2\n", ":2: the label is 'inf'"),
        ("1 1:1\n-1 2:0.2", ":2: the last line has no line end"),
        ("# nothing\n\n", "has no rows"),
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
    with pytest.raises(DataError, match="is truncated or damaged after line"):
        load_svmlight(path)


def test_the_byte_order_mark_of_an_editor_is_no_part_of_the_first_label(tmp_path):
    plain = load_svmlight(written(tmp_path, "1 1:1\n-1 2:0.5\n"))[0]
    marked = load_svmlight(written(tmp_path, "\ufeff1 1:1\n-1 2:0.5\n", "marked.svm"))[0]
    np.testing.assert_array_equal(marked.labels, plain.labels)
    np.testing.assert_array_equal(marked.values, plain.values)


def test_the_way_to_add_a_missing_line_end_works_where_the_user_stands(tmp_path):
    path = written(tmp_path, "1 1:1\n-1 2:0.2", "my rows.svm")
    with pytest.raises(DataError, match="line end") as caught:
        load_svmlight(path)
    subprocess.run(str(caught.value).partition("add one: ")[2], shell=True, check=True)
    assert len(load_svmlight(path)[0].labels) == 2


def test_a_line_end_is_not_added_to_a_compressed_file(tmp_path):
    packed = tmp_path / "rows.svm.gz"
    packed.write_bytes(gzip.compress(b"1 1:1\n-1 2:0.2"))
    with pytest.raises(DataError, match=r"unpack it and add one: echo >> .*/rows\.svm$"):
        load_svmlight(packed)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="missing.svm cannot be read: No such file"):
        load_svmlight(tmp_path / "missing.svm")


@pytest.mark.parametrize("line", range(1, 60, 7))
def test_one_wrong_line_among_many_blocks_is_named(digits, tmp_path, monkeypatch, line):
    monkeypatch.setattr(blocks, "__defaults__", (700,))
    content = digits[2].read_bytes().split(b"\n")[4:]  # less scikit-learn's comment
    content[line - 1] += b" 3:1"
    path = tmp_path / "wrong.svm"
    path.write_bytes(b"\n".join(content))
    with pytest.raises(DataError, match=rf"wrong.svm:{line}: feature 3 after"):
        load_svmlight(path)


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
    with pytest.raises(DataError, match=":3: label 2; .* Add this label to --labels"):
        load_svmlight(path, labels={0.0: -1.0, 1.0: 1.0})
    with pytest.raises(ConfigError, match=r"maps to \[0.0, 1.0\]"):
        load_svmlight(path, labels={0.0: 0.0, 1.0: 1.0, 2.0: 1.0})
