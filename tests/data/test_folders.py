"""What of a folder is read: text by its content; what is bad is skipped, named, or refused."""

import errno
import gzip
import importlib
import json
import os
import shlex
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.cli import main
from mlxhog.data import corpora, encodings, textfiles, unpacking
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError
from tests.data import notes
from tests.pairs import each_of
from tests.training.small import small_config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def read(folder, text_key=None):
    """The files of a folder that are skipped -> why."""
    corpus = corpora.readable(str(folder), text_key)
    return {str(one.path.relative_to(folder)): one.reason for one in corpus.skipped}


def test_a_folder_of_500_files_of_20_kinds_is_prepared_at_the_first_attempt(folder):
    n_texts = notes.make_notes(folder)
    prepared = prepare(str(folder), cache_dir=folder.parent / "cache")
    assert prepared.train.stat().st_size > 100_000
    n_files = sum(path.is_file() or path.is_fifo() for path in folder.rglob("*"))
    assert n_files > 450
    assert len(prepared.corpus.files) == n_texts
    summary, left_out, bad = prepared.notes
    n_skipped = 3 * notes.EACH + len(notes.BAD) + 3  # archive, hidden file, hidden folder
    assert summary.startswith(f"{n_skipped} of {n_texts + n_skipped} files skipped: 23 ")
    assert all(f"{notes.EACH} {suffix}" in summary for suffix in (".png", ".zip", ".json"))
    assert "9 that cannot be read, 2 hidden, 2 empty" in summary
    assert "\n" not in summary
    assert f"{notes.EACH} .zip (a zip archive; unpack or convert it: unzip FILE)" in left_out
    assert "1 .tar.gz (a tar archive; unpack or convert it: tar -xf FILE)" in left_out
    for name, reason in notes.BAD.items():
        assert f"bad/{name}" in bad
        assert reason in bad


def test_a_folder_of_500_files_of_20_kinds_trains_at_the_first_attempt(folder):
    notes.make_notes(folder)
    messages = []
    result = train(
        small_config(folder.parent, data=str(folder), steps=3),
        observer=lambda progress: messages.append(progress.message or ""),
    )
    assert (result.status, result.steps) == ("done", 3)
    assert [one for one in messages if "files skipped: 23 " in one and "--dry-run lists" in one]
    assert [one for one in messages if one.startswith("bad files: bad/half.txt.gz: cut short")]


def test_strict_data_refuses_with_every_bad_file_named(folder, capsys):
    notes.make_notes(folder)
    assert main(["train", "--data", str(folder), "--strict-data", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert all(f"bad/{name}" in error for name in notes.BAD)
    assert len(error.splitlines()) == 1


def test_every_skipped_file_is_listed_with_its_reason_before_a_run(folder, capsys):
    notes.make_notes(folder)
    words = ["train", "--data", str(folder), "--dry-run", "--workers", "torch:cpu"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if line.startswith(f"  skipped {folder}/")]
    assert len(listed) == 3 * notes.EACH + len(notes.BAD) + 3
    assert sum(line.endswith(".png: a picture") for line in listed) == notes.EACH
    for name, reason in notes.BAD.items():
        (line,) = [line for line in listed if f"/bad/{name}: " in line]
        assert reason in line
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["data"]["skipped"]) == len(listed)


@each_of("name", notes.BAD)
def test_a_bad_file_that_is_named_itself_is_an_error(tmp_path, name):
    notes.make_bad(tmp_path / "bad")
    with pytest.raises(DataError, match=notes.BAD[name].removeprefix("line 2: ")):
        prepare(str(tmp_path / "bad" / name), cache_dir=tmp_path / "cache")


def test_a_folder_with_nothing_but_bad_files_is_an_error_that_names_them(tmp_path):
    notes.make_bad(tmp_path / "bad")
    with pytest.raises(DataError, match="has no readable text: 11 of 11 files") as caught:
        prepare(str(tmp_path / "bad"), cache_dir=tmp_path / "cache")
    assert all(f"{name}" in str(caught.value) for name in notes.BAD)


def test_a_bad_file_that_a_glob_matches_is_skipped(tmp_path):
    notes.make_bad(tmp_path / "bad")
    (tmp_path / "bad" / "good.txt").write_text("good")
    corpus = corpora.readable(str(tmp_path / "bad" / "*.txt"))
    assert list(corpus.documents()) == [b"good"]
    assert len(corpus.skipped) == 5


def test_a_folder_whose_rest_is_too_short_says_what_was_skipped(folder):
    (folder / "a.txt").write_text("a")
    (folder / "b.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"too short: no held-out text \(1 of 2 .*b\.txt\.gz: cut "):
        prepare(str(folder), cache_dir=folder.parent / "cache")


def test_all_bad_files_are_named_as_far_as_a_message_goes(folder):
    for number in range(500):
        (folder / f"{number:03}.txt").write_bytes(b"x" * number + b"\0")
        (folder / f"{number:03}.md").touch()
    with pytest.raises(DataError) as caught:
        corpora.readable(str(folder))
    message = str(caught.value)
    assert "1000 of 1000 files skipped: 500 empty, 500 that cannot be read" in message
    assert "059.txt: not text: a zero byte at offset 59;" in message
    assert message.endswith(" more; choose other files")


def test_files_and_folders_that_are_closed_are_skipped_and_named(folder, monkeypatch):
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "closed").mkdir(parents=True)
    (folder / "sub" / "closed.txt").write_text("c")
    list_folder, open_file = os.scandir, unpacking.open_file

    def refuse(path):
        if "closed" in Path(path).name:  # as a user who is not root sees it
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or list_folder(path))
    monkeypatch.setattr(unpacking, "open_file", lambda path, *_: refuse(path) or open_file(path))
    assert read(folder) == {
        "sub/closed": "a folder that cannot be opened: Permission denied",
        "sub/closed.txt": "cannot be read: Permission denied; make it readable, or remove it",
    }


def test_files_that_need_a_missing_package_are_skipped_with_the_command_that_installs_it(
    folder, monkeypatch
):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    (folder / "a.txt").write_text("a")
    for name in ("b.parquet", "c.parquet"):
        (folder / name).write_bytes(b"PAR1")
    (note,) = corpora.readable(str(folder)).notes()[1:]
    assert (
        "b.parquet, c.parquet: reading .parquet needs pyarrow, which is not installed: python -m"
        in note
    )


def test_nothing_of_a_bad_file_is_trained(folder):
    for name in "abcdefgh":
        (folder / f"{name}.txt").write_text(f"text {name} " * 9)
    alone = prepare(str(folder), cache_dir=folder.parent / "cache")
    (folder / "c.jsonl").write_text('{"text": "good"}\n' * 1000 + "{")
    beside = prepare(str(folder), cache_dir=folder.parent / "cache")
    assert beside.corpus_sha256 == alone.corpus_sha256
    assert beside.train == alone.train
    assert not beside.fresh
    assert not alone.notes
    assert "c.jsonl: line 1001: not JSON" in beside.notes[1]


TEXTS = {
    "README": b"read me\n",
    "Makefile": b"all:\n\tcc -o a a.c\n",
    "LICENSE": "\u00a9 someone\n".encode(),
    "paper.1": b".TH X 1\nN\bNA\bA",
    "build.log": b"\x1b[1mok\x1b[0m\r\n",
    "notes.xyz": b"anything\n",
    "old.doc.txt~": b"a backup\n",
    "utf32": "wide".encode("utf-32"),
    "letter.latin": "Gr\xfc\xdfe aus K\xf6ln, wie versprochen".encode("latin-1"),
    "cut.log": b"x" * (encodings.HEAD_BYTES - 1) + "\u00e9".encode(),
    "packed.gz": gzip.compress(b"text"),
}
OTHERS = {
    "a.out": b"\x7fELF\x02\x01\x01\0",
    "random": bytes(range(1, 256)) * 4,
    "thesis": b"%PDF-1.4\n1 0 obj",
    "figure": b"%!PS-Adobe-3.0",
    "letter.rtf": b"{\\rtf1\\ansi text}",
    "id_rsa": b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
    "koi8": "\u043d\u0435 \u0436\u0434\u0438".encode("koi8-r"),
    "drawing.svg": b"<svg/>",
    "book.ipynb": b"{}",
    "table.csv": b"id,text\n1,x\n",
}


def test_a_file_of_no_known_kind_is_read_where_its_content_is_text(folder):
    for name, content in (TEXTS | OTHERS).items():
        (folder / name).write_bytes(content)
    assert set(read(folder)) == set(OTHERS)
    assert "table.csv" not in read(folder, "text")


def test_a_hidden_file_is_read_by_its_name_and_by_a_glob_only(folder):
    (folder / ".bashrc").write_text("alias a=b")
    (folder / "a.txt").write_text("a")
    assert read(folder) == {".bashrc": "a hidden file"}
    for spec in (folder / ".bashrc", folder / ".*"):
        assert list(corpora.find(str(spec)).documents()) == [b"alias a=b"]


def test_a_name_that_is_no_text_is_named_all_the_same(folder):
    (folder / "a.txt").write_text("a")
    bad = os.fsdecode(os.fsencode(folder) + b"/b\xff.txt")
    Path(bad).write_bytes(b"\0")
    corpus = corpora.readable(str(folder))
    note = corpus.notes()[1]
    note.encode()
    assert "b\\xff.txt: not text" in note
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {encodings.quoted(bad)}"], capture_output=True
    )
    assert shown.stdout == os.fsencode(bad)
    assert shlex.split(encodings.quoted(folder / "a 'b'")) == [str(folder / "a 'b'")]


def test_what_a_packed_file_unpacks_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_EXPANDED", 1 << 20)
    for name in ("a.txt.gz", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"a\n" * (2 << 20)))
        with pytest.raises(DataError, match=r"unpacks to more than 250 times its \d|not JSON"):
            list(textfiles.documents(tmp_path / name, None))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(os.urandom(1 << 20).hex().encode()))
    assert sum(map(len, textfiles.documents(tmp_path / "b.txt.gz", None))) == 2 << 20


@pytest.mark.slow
@each_of("split", [False, True])
@each_of("line", [b"never wait\n", b"never wait\n\n", "caf\xe9".encode()])
def test_a_long_text_is_read_in_documents_of_at_most_a_mebibyte_and_in_little_memory(
    tmp_path, line, split
):
    text = line * ((20 << 20) // len(line))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text, 1))
    rest = memoryview(text)
    tracemalloc.start()
    try:
        for document in textfiles.documents(tmp_path / "a.txt.gz", None, split=split):
            assert len(document) <= textfiles.DOCUMENT_BYTES
            assert rest[: len(document)] == document
            document.decode()
            rest = rest[len(document) :]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not rest
    assert most < 12 << 20


@each_of(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "%s"}', r"a.jsonl:1: the line has more than 1,000 bytes"),
        ("a.csv", b'text\nx\n"%s"', r"a.csv:3: not CSV \(a row of more than 1,000 characters"),
        ("a.tsv", b'text\nx\n"%s\n"', r"a.tsv:3: not CSV \(a row of more than 1,000 characters"),
    ],
)
def test_a_record_that_is_too_long_is_refused_before_it_is_read(
    tmp_path, name, content, message, monkeypatch
):
    for module in (textfiles, textfiles.tables):
        monkeypatch.setattr(module, "MOST_LINE_BYTES", 1000)
    (tmp_path / name).write_bytes(content % (b"x" * 2000))
    with pytest.raises(DataError, match=message):
        list(textfiles.documents(tmp_path / name, "text"))
