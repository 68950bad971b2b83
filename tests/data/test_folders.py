"""What a name stands for: a corpus, a file, the text files of a folder; bad files are named."""

import errno
import gzip
import importlib
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.data import corpora, encodings
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError
from tests.data import notes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def written(folder, **contents):
    """Write files; a name is spelt with __ for a dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def texts(spec, text_key=None):
    return list(corpora.find(str(spec), text_key).documents())


def skipped(folder, text_key=None):
    """The files of a folder that are skipped -> why."""
    corpus = corpora.readable(str(folder), text_key)
    return {str(one.path.relative_to(folder)): one.reason for one in corpus.skipped}


def test_a_bad_file_is_an_error_if_it_is_named_itself(tmp_path):
    notes.make_bad(tmp_path / "bad")
    for name, reason in notes.BAD.items():
        with pytest.raises(DataError, match=reason.removeprefix("line 2: ")):
            prepare(str(tmp_path / "bad" / name), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="has no readable text: 11 of 11 files") as caught:
        prepare(str(tmp_path / "bad"), cache_dir=tmp_path / "cache")
    assert all(name in str(caught.value) for name in notes.BAD)
    written(tmp_path, bad__txt=b"\0")
    with pytest.raises(DataError, match=r"bad.txt is not text"):
        corpora.readable(f"sotu\n{tmp_path}/bad.txt")


def test_nothing_of_a_bad_file_is_trained(folder):
    for name in "abcdefgh":
        (folder / f"{name}.txt").write_text(f"text {name} " * 9)
    alone = prepare(str(folder), cache_dir=folder.parent / "cache")
    (folder / "c.jsonl").write_text('{"text": "good"}\n' * 1000 + "{")
    beside = prepare(str(folder), cache_dir=folder.parent / "cache")
    assert (beside.train, beside.corpus_sha256) == (alone.train, alone.corpus_sha256)
    assert not beside.fresh
    assert "c.jsonl: line 1001: not JSON" in beside.notes[1]


def test_a_message_names_many_bad_files_and_counts_the_rest(folder):
    for number in range(500):
        (folder / f"{number:03}.txt").write_bytes(b"x" * number + b"\0")
        (folder / f"{number:03}.md").touch()
    with pytest.raises(DataError) as caught:
        corpora.readable(str(folder))
    message = str(caught.value)
    assert "1000 of 1000 files skipped: 500 empty, 500 that cannot be read" in message
    assert "039.txt: not text: a zero byte at offset 39;" in message
    assert message.endswith(" more; choose other files")


def test_files_and_folders_that_are_closed_are_skipped_and_named(folder, monkeypatch):
    written(folder, a__txt="a", sub__txt="c")
    (folder / "closed").mkdir()
    list_folder, open_file = os.scandir, os.open

    def refuse(path):
        if Path(path).name in ("closed", "sub.txt"):  # as a user who is not root sees it
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or list_folder(path))
    monkeypatch.setattr(os, "open", lambda path, *how: refuse(path) or open_file(path, *how))
    assert skipped(folder) == {
        "closed": "a folder that cannot be opened: Permission denied",
        "sub.txt": "cannot be read: Permission denied; make it readable, or remove it",
    }


def test_files_that_need_a_missing_package_are_skipped_with_the_command_that_installs_it(
    folder, monkeypatch
):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    written(folder, a__txt="a", b__parquet=b"PAR1", c__parquet=b"PAR1")
    (note,) = corpora.readable(str(folder)).notes()[1:]
    assert "b.parquet, c.parquet: reading .parquet needs pyarrow, which is not installed" in note


TEXTS = {
    "README": b"read me\n",
    "Makefile": b"all:\n\tcc -o a a.c\n",
    "LICENSE": "\u00a9 someone\n".encode(),
    "paper.1": b".TH X 1\nN\bNA\bA",
    "build.log": b"\x1b[1mok\x1b[0m\r\n",
    "notes.xyz": b"anything\n",
    "old.doc.txt~": b"a backup\n",
    "letter.latin": "Gr\xfc\xdfe aus K\xf6ln, wie versprochen".encode("latin-1"),
    "cut.log": b"x" * (encodings.HEAD_BYTES - 1) + "\u00e9".encode(),
    "packed.gz": gzip.compress(b"text"),
}
OTHERS = {
    "utf32": ("wide".encode("utf-32"), "text in UTF-32; unpack or convert it: iconv -f UTF-32"),
    "a.out": (b"\x7fELF\x02\x01\x01\0", "a program"),
    "random": (bytes(range(1, 256)) * 4, "control characters"),
    "thesis": (b"%PDF-1.4\n1 0 obj", "pdftotext"),
    "figure": (b"%!PS-Adobe-3.0", "PostScript"),
    "letter.rtf": (b"{\\rtf1\\ansi text}", "pandoc"),
    "id_rsa": (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "a private key"),
    "koi8": ("\u043d\u0435 \u0436\u0434\u0438".encode("koi8-r"), "iconv converts it"),
    "drawing.svg": (b"<svg/>", "a drawing"),
    "book.ipynb": (b"{}", "a notebook; unpack or convert it: jupyter nbconvert"),
    "mail.mbox": (b"From a", "to convert it see docs/own-text.md"),
    "package.json": (b'{"name": "x"}', "its records have no text; --text-key names another key"),
    "table.csv": (b"id,text\n1,x\n", "--text-key names the column of its text"),
    ".hidden": (b"text", "a hidden file"),
}


def test_a_file_of_no_known_kind_is_read_if_its_content_is_text(folder, capsys):
    for name, content in TEXTS.items():
        (folder / name).write_bytes(content)
    for name, (content, _) in OTHERS.items():
        (folder / name).write_bytes(content)
    reasons = skipped(folder)
    assert reasons.keys() == OTHERS.keys()
    for name, (_, fragment) in OTHERS.items():
        assert fragment in reasons[name]
    assert "table.csv" not in skipped(folder, "text")
    notes.make_bad(folder / "bad")
    archive = [folder / f"{k}.zip" for k in range(9)]
    for path in archive:
        path.write_bytes(b"PK\x03\x04")
    prepared = prepare(str(folder), cache_dir=folder.parent / "cache")
    assert len(prepared.corpus.files) == len(TEXTS)
    summary, bad = prepared.notes
    n_skipped = len(OTHERS) + len(notes.BAD) + len(archive)
    assert summary.startswith(f"{n_skipped} of {n_skipped + len(TEXTS)} files skipped: 9 .zip")
    assert "9 that cannot be read" in summary
    assert "9 .zip (a zip archive; unpack or convert it: unzip FILE)" in summary
    assert all(f"bad/{name}" in bad and reason in bad for name, reason in notes.BAD.items())
    words = ["train", "--data", str(folder), "--dry-run", "--workers", "torch:cpu"]
    assert main([*words, "--json"]) == 0  # lists all of them
    listed = json.loads(capsys.readouterr().out)["data"]["skipped"]
    assert len(listed) == n_skipped
    assert main([*words, "--strict-data"]) == 2  # refuses, and names all of them
    (error,) = capsys.readouterr().err.splitlines()
    assert all(f"bad/{name}" in error for name in notes.BAD)
    for spec in (folder / ".hidden", folder / ".*"):
        assert texts(spec) == [b"text"]
    (note,) = corpora.find(str(folder / "*.ipynb")).notes()
    assert "read as it stands, with all markup: a notebook; unpack or convert it: jup" in note


def test_a_name_that_is_not_text_can_be_shown_and_typed(folder):
    written(folder, a__txt="a")
    bad = os.fsdecode(os.fsencode(folder) + b"/b\xff.txt")
    Path(bad).write_bytes(b"\0")
    note = corpora.readable(str(folder)).notes()[1]
    note.encode()
    assert "b\\xff.txt: not text" in note
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {encodings.quoted(bad)}"], capture_output=True
    )
    assert shown.stdout == os.fsencode(bad)
    assert shlex.split(encodings.quoted(folder / "a 'b'")) == [str(folder / "a 'b'")]


def test_a_folder_without_text_says_what_it_holds_and_how_to_read_it(tmp_path):
    folder = tmp_path / "it's [mine]"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no files"):
        corpora.find(str(folder))
    for name in ("drawing.svg", ".env"):
        (folder / name).write_text("a = 1")
        with pytest.raises(DataError, match="holds no text: 1 of 1 files skipped: .* or one of"):
            corpora.find(str(folder))
        assert texts(folder / name) == [b"a = 1"]
        (folder / name).unlink()
    written(folder, a__csv="review\nr\n")
    with pytest.raises(DataError, match=r"1 \.csv; .*: --text-key review"):
        corpora.find(str(folder))
    assert texts(folder, "review") == [b"r"]


def test_a_folder_and_a_glob_give_their_files_in_the_order_of_paths(tmp_path):
    for name in ("b.txt", "a/z.md", ".hidden.txt", "a/.git/x.txt", "c.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == [b"a/z.md", b"b.txt", b"c.log"] == texts(f"dir:{tmp_path}")
    assert texts(tmp_path / "*.*") == [b"b.txt", b"c.log"]
    assert texts(tmp_path / "**" / "*.md") == [b"a/z.md"]
    with pytest.raises(DataError, match="no file matches"):
        corpora.find(str(tmp_path / "*.nothing"))


def test_a_link_to_a_folder_is_followed_once_and_loops_are_named(tmp_path):
    own, away = tmp_path / "notes", tmp_path / "away"
    for path in (own / "a.txt", own / "sub" / "b.txt", away / "inner" / "c.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.stem)
    (own / "1 far").symlink_to(away)
    (own / "2 again").symlink_to(away / "inner")
    (own / "3 own").symlink_to(own / "sub")
    (own / "sub" / "4 loop").symlink_to(own)
    (away / "5 up").symlink_to(tmp_path)
    (own / "6 nowhere").symlink_to(tmp_path / "gone")
    corpus = corpora.readable(str(own))
    assert list(corpus.documents()) == [b"c", b"a", b"b"]
    assert {one.path.name: one.reason for one in corpus.skipped if one.kind == "linked"} == {
        "2 again": "a link to a folder that is read already",
        "3 own": "a link to a folder that is read already",
        "4 loop": "a link to a folder above it",
        "5 up": "a link to a folder above it",
    }
    assert "6 nowhere: cannot be read" in corpus.notes()[1]
    (own / "again.txt").symlink_to(own / "a.txt")
    assert texts(own / "*.txt") == [b"a"]


def test_several_texts_are_one_corpus_each_of_which_is_read_as_alone(tmp_path):
    for name, content in {
        "notes/a.txt": "a",
        "notes/c.txt": "\0",
        "my letter.md": "letter",
        "talks/train.jsonl": '{"text": "t"}\n',
        "talks/valid.jsonl": '{"text": "v"}\n',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    corpus = corpora.readable(f"{tmp_path}/notes\n{tmp_path}/my letter.md\n{tmp_path}/talks")
    assert list(corpus.documents()) == [b"a", b"letter", b"t"]
    assert list(corpus.documents(held_out=True)) == [b"v"]
    assert [one.path.name for one in corpus.skipped] == ["c.txt"]
    assert [Path(part.source).name for part in corpora.parts(corpus)] == [
        "a.txt", "my letter.md", "train.jsonl", "valid.jsonl",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"names \S+a.txt more than once.*name every file"):
        corpora.find(f"{tmp_path}/notes\n{tmp_path}/notes/a.txt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", r"the corpus is ''; name sotu"),
        ("dir: ", r"name sotu, or a path"),
        ("hf:", "the corpus is 'hf:'"),
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
