"""Files whose names say that they are held out: of every kind, and never trained on."""

import gzip
import json

import pytest

from mlxhog.data import corpora, heldout
from mlxhog.data.prepare import prepare
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError
from tests.pairs import each_of

WORDS = "the text of this file is long enough to be held out; "


def text_in(path):
    return bytes(int(t) for t in TokenFile.open(path).tokens if t < 256).decode()


def prepared(folder):
    return prepare(str(folder), cache_dir=folder.parent / "cache")


SHARDS = ("{}", "{}-00000-of-00002", "{}_1", "{}.03")


def roles(folder, *names, size=400):
    """What the files of these names are."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} ".ljust(size, "x"))
    named = heldout.by_name([folder / name for name in names], folder)
    return {
        str(path.relative_to(folder)): role
        for role, files in named._asdict().items()
        for path in files
        if role != "train"
    }


@each_of("suffix", ["", ".txt", ".md", ".raw", ".txt.gz", ".jsonl.gz", ".csv", ".parquet"])
@each_of("shard", SHARDS)
@each_of("word", ["valid", "validation", "Val", "dev", "test"])
def test_files_of_every_kind_are_held_out_by_name(tmp_path, suffix, shard, word):
    shard = shard if suffix else "{}"  # without a suffix what follows the point is one
    train, held_out = (shard.format(name) + suffix for name in ("train", word))
    (tmp_path / held_out).write_bytes(b"x" * 400)
    (tmp_path / train).write_bytes(gzip.compress(b"x") if suffix.endswith("gz") else b"x")
    named = heldout.by_name([tmp_path / train, tmp_path / held_out], tmp_path)
    assert named.held_out == (tmp_path / held_out,)


def test_held_out_files_that_cannot_be_read_are_an_error(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a text"}))
    (tmp_path / "valid.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"valid\.jsonl:1: not JSON"):
        prepare(str(tmp_path), cache_dir=tmp_path / "cache")


TRAINED = (
    "validity.txt", "testimony.txt", "devices.md", "Developer notes.txt", "evaluation.md",
    "my_test.txt", "latest.txt", "contest.txt", "val d'Aosta.txt", "test_of_time.txt", "tests.txt",
    "test.py", "test_reader.py", "dev.sh", "docs/validation.md", "docs/test.txt",
    "tests/data/test.jsonl",
)  # fmt: skip


@each_of("name", TRAINED)
def test_a_word_within_another_and_a_page_about_it_are_text_to_train_on(tmp_path, name):
    assert roles(tmp_path, "a.txt", "b.txt", "train.py", "reader.py", name) == {}


BESIDE = {
    "wiki.valid.tokens": "wiki.train.tokens",
    "my_test.txt": "my_train.txt",
    "corpus.dev": "corpus.train",
    "data/validation-00000-of-00001.parquet": "data/train-00003-of-00007.parquet",
    "data/val.jsonl": "data/train.jsonl.gz",
    "valid/a.txt": "train/b.txt",
    "en/dev/x/1.txt": "en/train/y.txt",
    "dev.en.txt": "train.en.txt",
}


@each_of("name", BESIDE)
def test_a_word_of_a_name_counts_beside_the_same_name_with_train(tmp_path, name):
    assert roles(tmp_path, "a.md", BESIDE[name], name)[name] == "held_out"


@each_of("name", set(BESIDE) - {"wiki.valid.tokens"})
def test_without_that_name_it_is_text_to_train_on(tmp_path, name):
    assert roles(tmp_path, "a.txt", "b.txt", name) == {}


def test_beside_held_out_text_test_files_are_neither_trained_nor_evaluated(tmp_path):
    folder = tmp_path / "data"
    roles(folder, "train.txt", "valid.txt", "test.txt")
    result = prepared(folder)
    both = text_in(result.train) + text_in(result.val)
    assert "test.txt" not in both
    assert [note for note in result.notes if note.startswith("never trained on, by name: test.txt")]
    (skipped,) = result.corpus.skipped
    assert (skipped.path.name, skipped.reason) == ("test.txt", "test text, by its name")


@pytest.mark.parametrize(
    ("train_size", "size"), [(300, 4000), (4000, 20)], ids=["too little to train", "almost none"]
)
def test_a_name_does_not_count_if_the_text_contradicts_it(tmp_path, train_size, size):
    folder = tmp_path / "data"
    roles(folder, "a.txt", size=train_size)
    assert roles(folder, "test.txt", size=size) == {"test.txt": "unheeded"}
    roles(folder, "train.txt", size=train_size)
    corpus = corpora.find(str(folder))
    assert [path.name for path in corpus.held_out] == ["test.txt"]
    (folder / "train.txt").unlink()
    (note,) = corpora.find(str(folder)).notes()
    assert note.startswith("training text in spite of its name: test.txt: the other")


def test_of_equal_files_one_is_read_in_any_packing_and_line_ends(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(f"document {i}\n" * 20)
    (folder / "00 copy.md").write_bytes(b"document 5\r\n" * 20)
    (folder / "99.txt.gz").write_bytes(gzip.compress(b"document 7\n" * 20))
    result = prepared(folder)
    reasons = {one.path.name: one.reason for one in result.corpus.skipped}
    assert reasons == {
        "05.txt": f"equal to {folder / '00 copy.md'}",
        "99.txt.gz": f"equal to {folder / '07.txt'}",
    }
    texts = text_in(result.train).split("\n") + text_in(result.val).split("\n")
    assert (texts.count("document 5"), texts.count("document 7")) == (20, 20)
    note = "read once, since another file has the same text: 05.txt, 99.txt.gz"
    assert note in result.notes


def test_a_held_out_file_with_the_text_of_a_training_file_is_not_held_out(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": WORDS * 20}) + "\n")
    result = prepared(folder)
    assert result.rule == "tail"
    assert text_in(result.train) + text_in(result.val) == WORDS * 20
    assert "read once, since another file has the same text: valid.jsonl" in result.notes


def test_held_out_text_of_one_of_several_paths_is_that_of_all(tmp_path):
    for name, text in (("a/train.txt", "one " * 200), ("a/valid.txt", "two " * 100),
                       ("b/c.txt", "six " * 300), ("b/copy.txt", "one " * 200)):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    spec = f"{tmp_path / 'a'}\n{tmp_path / 'b'}"
    prepared = prepare(spec, cache_dir=tmp_path / "cache")
    assert prepared.rule == "given"
    assert [path.name for path in prepared.corpus.held_out] == ["valid.txt"]
    assert [path.name for path in prepared.corpus.files] == ["train.txt", "c.txt"]
    assert any("copy.txt" in note and "same text" in note for note in prepared.notes)
    assert dict(prepared.held_out_bytes())[str(tmp_path / "a" / "valid.txt")] == 400
    assert prepare(spec, cache_dir=tmp_path / "cache").notes == prepared.notes
