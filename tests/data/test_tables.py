"""Tables give their rows: CSV by a named column, Parquet, and data sets on the disk."""

import gzip
import importlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from mlxhog.data import corpora, textfiles
from mlxhog.data.corpora import inventory
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError, EnvironmentLacks


def read(path, text_key=None):
    return list(textfiles.documents(path, text_key))


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,review\n1,"good,\nand ""long"""\n2, \n3,caf\xe9\n'),
        ("a.csv", '\ufeffid;review\r\n1;"good,\nand ""long"""\r\n3;caf\xe9\r\n'),
        ("a.tsv", 'id\treview\n1\t"good,\nand ""long"""\n3\tcaf\xe9\n'),
    ],
)
def test_the_named_column_of_a_table_is_its_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode())
    expected = [b'good,\nand "long"', "caf\xe9".encode()]
    assert read(path, "review") == expected
    packed = tmp_path / (name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed, "review") == expected


def test_bytes_of_a_table_that_are_not_utf8_survive(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\ncaf\xe9\n")
    assert read(tmp_path / "a.csv", "text") == [b"caf\xe9"]


@pytest.mark.parametrize(
    ("content", "text_key", "message"),
    [
        (
            b"id,review\n1,x\n",
            None,
            r"a.csv is a table.*its columns are 'id', 'review'; name .* --text-key review; or",
        ),
        (b"id,review\n1,x\n", "reviw", r"a.csv:2: no key 'reviw'; keys are 'id', 'review'"),
        (b'id,review\n1,"x\n', "review", r"a.csv:2: not CSV .*; repair or delete this line"),
        (b"id,review\n1\n", "review", r"a.csv:2: 'review' is empty \(null\), expected text"),
        (b"", None, r"a.csv is a table.*its columns are none"),
        (b"id,review\n", None, r"a.csv is a table.*its columns are 'id', 'review'"),
        (
            b"id,answer,question\n1,x,y\n",
            None,
            r"the keys of the prompt and of its completion, .*: --text-key question,answer$",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_the_way_out(
    tmp_path, content, text_key, message
):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv", text_key)


def test_a_folder_takes_tables_where_their_column_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("review\nr\n")
    with pytest.raises(DataError, match=r"1 \.csv; .*: --text-key review"):
        corpora.find(str(tmp_path))
    assert list(corpora.find(str(tmp_path), "review").documents()) == [b"r"]
    (tmp_path / "a.txt").write_text("t")
    corpus = corpora.find(str(tmp_path))
    assert list(corpus.documents()) == [b"t"]
    (skipped,) = corpus.skipped
    assert skipped.path == tmp_path / "a.csv"
    assert "--text-key names the column" in skipped.reason


def test_rows_of_parquet_are_read_like_lines_of_json(tmp_path):
    path = write_parquet(tmp_path / "d" / "a.parquet", text=["one", " ", "two"], id=[1, 2, 3])
    assert read(path) == [b"one", b"two"]
    pair = write_parquet(tmp_path / "d" / "b.parquet", prompt=["p"], completion=["c"])
    assert read(pair) == [b"p\nc"]
    turns = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]]
    talk = write_parquet(tmp_path / "d" / "c.parquet", messages=turns)
    assert read(talk) == [b"User: hi\nAssistant: yo"]
    assert list(corpora.find(str(tmp_path / "d")).documents()) == [
        b"one", b"two", b"p\nc", b"User: hi\nAssistant: yo",
    ]  # fmt: skip


def test_bad_parquet_is_named(tmp_path):
    other = write_parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(DataError, match=r"a.parquet, row 1: no key 'text'; keys are 'body', 'id'"):
        read(other)
    assert read(other, "body") == [b"x"]
    empty = write_parquet(tmp_path / "n.parquet", text=["x", None])
    with pytest.raises(DataError, match=r"n.parquet, row 2: 'text' is empty"):
        read(empty)
    whole = other.read_bytes()
    for content in (whole[: len(whole) // 2], b"plain text", b""):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"b.parquet is damaged or not Parquet"):
            read(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"nowhere.parquet cannot be read: No such file"):
        read(tmp_path / "nowhere.parquet")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.parquet", "pyarrow, which is not installed: python -m pip install pyarrow"),
        (
            "hf:someone/something",
            "datasets, which is not installed: python -m pip install datasets",
        ),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_command(spec, message, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.chdir(tmp_path)
    Path("a.parquet").write_bytes(b"")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentLacks, match=message):
        list(corpora.find(spec).documents())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder for data sets; the package keeps what it makes of them in another."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_a_folder_of_data_files_is_a_data_set_with_its_own_held_out_text(hub):
    write_parquet(hub / "data" / "train-0.parquet", text=["one", "", "two"], id=[1, 2, 3])
    write_parquet(hub / "data" / "validation-0.parquet", text=["three"], id=[4])
    corpus = corpora.find(f"hf:{hub}")
    assert corpus.source == f"hf:{hub}"
    assert list(corpus.documents()) == [b"one", b"two"] == list(corpus.documents())
    assert corpus.validation is not None
    assert list(corpus.validation()) == [b"three"]
    assert inventory(corpus)["field"] == "text"
    assert prepare(f"hf:{hub}").rule == "given"


def test_a_saved_data_set_is_read_by_its_column(hub):
    from datasets import Dataset

    Dataset.from_dict({"body": ["one", "two"], "n": [1, 2]}).save_to_disk(str(hub))
    corpus = corpora.find(f"hf:{hub}", "body")
    assert list(corpus.documents()) == [b"one", b"two"]
    assert inventory(corpus, "body")["field"] == "body"
    with pytest.raises(DataError, match=r"train row 1: no key 'text'; keys are 'body', 'n'"):
        list(corpora.find(f"hf:{hub}").documents())


def test_a_data_set_that_is_not_there_or_has_no_training_split_is_named(hub):
    from datasets import Dataset, DatasetDict

    with pytest.raises(DataError, match=r"hf:no/such cannot be loaded: .*hf:OWNER/NAME,SUBSET"):
        corpora.find("hf:no/such")
    with pytest.raises(DataError, match="the corpus is 'hf:'"):
        corpora.find("hf:")
    parts = {name: Dataset.from_dict({"text": ["x"]}) for name in ("a", "b")}
    DatasetDict(parts).save_to_disk(str(hub))
    with pytest.raises(DataError, match=r"no split 'train'; its splits are 'a', 'b'"):
        corpora.find(f"hf:{hub}")


@pytest.mark.parametrize("word", ["null", "NA", "nan", "None", "N/A"])
def test_a_word_for_nothing_in_a_table_is_a_word(hub, word):
    (hub / "train.csv").write_text(f"text,id\n{word},1\n,2\nsome,3\n")
    assert read(hub / "train.csv", "text") == [word.encode(), b"some"]
    assert list(corpora.find(f"hf:{hub}").documents()) == [word.encode(), b"some"]


def test_an_error_of_the_package_datasets_keeps_its_cause(hub):
    (hub / "train.jsonl").write_text('{"text": "a"}\n{"text": broken\n')
    with pytest.raises(DataError, match=r"cannot be loaded: .*JSON parse error") as caught:
        corpora.find(f"hf:{hub}")
    assert str(hub) in str(caught.value)


def test_the_inventory_says_what_is_read_from_where_and_what_is_not(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123 caf\xe9")
    (tmp_path / "b.jsonl").write_text('\n{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"content": "c"}'))
    write_parquet(tmp_path / "d.parquet", text=["x"])
    (tmp_path / "e.jpg").write_bytes(b"\0")
    (tmp_path / ".hidden.txt").write_text("h")
    record = inventory(corpora.readable(str(tmp_path)))
    assert [(Path(file["path"]).name, file["field"]) for file in record["files"]] == [
        ("a.txt", None),
        ("b.jsonl", "prompt + completion"),
        ("c.jsonl.gz", "content"),
        ("d.parquet", "text"),
    ]
    assert record["files"][0] == {
        "path": str(tmp_path / "a.txt"), "n_bytes": 9, "field": None, "not_utf8": 8,
        "fields": {}, "held_out_bytes": None,
    }  # fmt: skip
    reasons = {Path(one["path"]).name: one["reason"] for one in record["skipped"]}
    assert reasons == {
        ".hidden.txt": "a hidden file",
        "e.jpg": "not text: a zero byte at offset 0",
    }


def test_the_inventory_looks_at_a_hundred_records_of_a_file_as_training_does(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = ['{"content": "c"}', *['{"text": "t", "content": "c"}'] * 99, '{"body": "late"}']
    file.write_text("\n".join(lines))
    (result,) = inventory(corpora.find(str(file)))["files"]
    assert (result["field"], result["fields"]) == ("text", {"text": 99, "content": 1})
    file.write_text("\n".join([*lines[:4], lines[-1]]))
    with pytest.raises(DataError, match=r"a.jsonl:5: no key 'text'; keys are 'body'.*body") as here:
        inventory(corpora.find(str(file)))
    with pytest.raises(DataError) as there:
        prepare(str(file))
    assert str(here.value) == str(there.value)


def test_files_beside_mlx_lms_training_text_are_skipped_with_that_reason(tmp_path):
    for name in ("train", "valid", "more"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    record = inventory(corpora.find(str(tmp_path)))
    assert [Path(file["path"]).name for file in record["files"]] == ["train.jsonl", "valid.jsonl"]
    (skipped,) = record["skipped"]
    assert (Path(skipped["path"]).name, skipped["reason"]) == (
        "more.jsonl", "beside train.jsonl, the training text",
    )  # fmt: skip
