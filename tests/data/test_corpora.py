"""Corpora are found by name, path, folder or glob."""

import json
import shlex

import pytest

from mlxhog.data import corpora
from mlxhog.errors import DataError
from tests.pairs import each_of


def texts(spec):
    return list(corpora.find(str(spec)).documents())


def test_sotu_is_the_embedded_corpus():
    corpus = corpora.find("sotu")
    documents = list(corpus.documents())
    assert len(documents) == 233
    assert sum(map(len, documents)) == 10_761_158
    assert list(corpus.documents()) == documents


def test_a_folder_gives_its_text_files_in_order_of_path(tmp_path):
    for name in ("b.txt", "a/z.md", ".hidden.txt", "a/.git/x.txt", "pic.jpg", "c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name if name != "c.jsonl" else '{"text": "c"}\n')
    (tmp_path / "pic.jpg").write_bytes(b"\xff\xd8\xff\0")
    assert texts(tmp_path) == [b"a/z.md", b"b.txt", b"c"]
    assert texts(f"dir:{tmp_path}") == texts(tmp_path)


def test_a_folder_without_text_says_what_it_holds(tmp_path):
    (tmp_path / "pic.jpg").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"holds no text: 1 of 1 files skipped: 1 \.jpg; name ano"):
        corpora.find(str(tmp_path))
    (tmp_path / "pic.jpg").unlink()
    with pytest.raises(DataError, match="holds no files"):
        corpora.find(str(tmp_path))


@each_of("name", [".env", "drawing.svg"])
def test_a_folder_without_text_says_which_glob_reads_its_files(tmp_path, name):
    folder = tmp_path / "it's [mine]"
    folder.mkdir()
    (folder / name).write_text("a = 1")
    with pytest.raises(DataError) as caught:
        corpora.find(str(folder))
    _, glob = shlex.split(str(caught.value).partition("matches: ")[2])
    assert texts(glob) == [b"a = 1"]


@each_of("name", ["valid.jsonl", "val.jsonl", "validation.jsonl"])
def test_a_folder_in_the_layout_of_mlx_lm_brings_its_held_out_text(tmp_path, name):
    for file in ("train.jsonl", name, "test.jsonl"):
        (tmp_path / file).write_text(json.dumps({"text": file}))
    corpus = corpora.find(str(tmp_path))
    assert corpus.validation is not None
    assert list(corpus.documents()) == [b"train.jsonl"]
    assert list(corpus.validation()) == [name.encode()]


def test_a_training_file_alone_leaves_holding_out_to_us(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "t"}')
    corpus = corpora.find(str(tmp_path))
    assert corpus.validation is None
    assert list(corpus.documents()) == [b"t"]


def test_a_glob_gives_the_files_it_matches(tmp_path):
    for name in ("b.log", "a.log", "sub/c.log", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "*.log") == [b"a.log", b"b.log"]
    assert texts(tmp_path / "**" / "*.log") == [b"a.log", b"b.log", b"sub/c.log"]
    with pytest.raises(DataError, match="no file matches"):
        corpora.find(str(tmp_path / "*.nothing"))


def test_a_large_text_file_becomes_the_same_documents_alone_and_in_a_folder(tmp_path):
    (tmp_path / "book.txt").write_text("paragraph\n\n" * 10_000)
    assert len(texts(tmp_path / "book.txt")) > 40
    assert texts(tmp_path) == texts(tmp_path / "book.txt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", r"the corpus is ''; name sotu"),
        ("dir: ", r"name sotu, or a path"),
        ("sotuu", r"no corpus 'sotuu'; did you mean 'sotu'\?"),
        ("novels", r"did you mean 'novel'\?"),
        ("qqqqq", r"no corpus 'qqqqq'; name sotu, a file, a folder or a glob"),
        ("file:novels", r"no file or folder 'novels'; did you mean 'novel'\?"),
        ("here/bok.txt", r"there is no folder 'here'"),
        ("novel/bok.txt", r"did you mean 'novel/book.txt'\?"),
    ],
)
def test_an_unknown_corpus_suggests_its_neighbour(spec, message, tmp_path, monkeypatch):
    (tmp_path / "novel").mkdir()
    (tmp_path / "novel" / "book.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        corpora.find(spec)


def test_several_texts_have_a_full_path_each_and_one_of_them_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("a")
    assert corpora.full_path("a\nsotu\nfile:b") == f"{tmp_path / 'a'}\nsotu\nfile:{tmp_path / 'b'}"
    assert corpora.full_path("sotu") is None
    assert not corpora.is_missing("a\nsotu")
    assert corpora.is_missing("a\nfile:b")
