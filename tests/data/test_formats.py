"""Files are read as what they are: records, packed text, links, and other formats by their name."""

import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlxhog.data import corpora, textfiles
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError
from tests.pairs import each_of

LINES = b'{"text": "one"}\n{"text": "two"}\n'
LIST = b'[\n  {"text": "one"},\n  {"text": "two"}\n]\n'


def read(path, text_key=None):
    return list(textfiles.documents(path, text_key))


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@each_of(
    ("name", "content"),
    [
        ("a.ndjson", LINES),
        ("A.JSONLINES", LINES),
        ("a.json", LINES),
        ("a.json", LIST),
        ("a.json", b"\xef\xbb\xbf" + LIST),
        ("a.json", LIST.decode().encode("utf-16")),
        ("a.json.gz", gzip.compress(LIST)),
        ("dump", LINES),
        ("dump.of_today", LIST),
        ("dump", gzip.compress(LINES)),
        ("lines.jsonl", lzma.compress(LINES)),
    ],
)
def test_records_are_records_by_suffix_or_content(tmp_path, name, content):
    path = written(tmp_path / "d" / name, content)
    assert read(path) == [b"one", b"two"]
    assert list(corpora.find(str(tmp_path / "d")).documents()) == [b"one", b"two"]
    assert corpora.inventory(corpora.find(str(path)))["files"][0]["field"] == "text"


def test_a_json_file_of_one_record_is_one_document(tmp_path):
    assert read(written(tmp_path / "a.json", json.dumps({"text": "one"}, indent=1))) == [b"one"]


def test_parquet_is_known_by_its_content(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": ["x"]}), tmp_path / "part")
    assert list(corpora.find(str(tmp_path)).documents()) == [b"x"]


@each_of("content", [b"{}\n", b"{braces}\n", b"[1] a reference\n", b"{\n  open\n", b"text {x}\n"])
def test_text_that_begins_with_a_brace_stays_text(tmp_path, content):
    assert read(written(tmp_path / "notes", content)) == [content]


@each_of(
    ("name", "content", "message"),
    [
        ("a.json", '{"text": "one"', r"a.json: not JSON .*; repair it"),
        ("a.json", '[{"text": "one"}, {"id": 2}]', r"a.json, record 2: no key 'text'"),
        ("dump", '{"body": "x"}\n', r"dump:1: no key 'text'; .*--text-key body"),
    ],
)
def test_a_bad_record_of_json_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read(written(tmp_path / name, content))


def test_a_list_that_is_too_large_to_be_read_at_once_says_how_to_make_lines_of_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("mlxhog.base.reading.MOST_BYTES", 20)
    with pytest.raises(DataError, match=r"more than 20 bytes.*jq -c '\.\[\]' \S+a\.json"):
        read(written(tmp_path / "a.json", LIST))


def test_json_of_programs_is_left_out_of_a_folder_with_a_note(tmp_path):
    written(tmp_path / "a.txt", "text")
    written(tmp_path / "package.json", '{\n "name": "x",\n "version": "1"\n}')
    written(tmp_path / "people.json", '[{"name": "x"}]')
    corpus = corpora.find(str(tmp_path))
    assert list(corpus.documents()) == [b"text"]
    assert "2 .json (its records have no text; --text-key names another key)" in corpus.notes()[1]
    assert list(corpora.find(str(tmp_path / "people.json"), "name").documents()) == [b"x"]


CHATS = {
    "chatgpt.json": [{"title": "t", "mapping": {"a": {"message": None}}}],
    "discord.json": {"guild": {}, "messages": [{"author": {"name": "x"}, "content": "hi"}]},
    "telegram.json": {"name": "x", "messages": [{"from_id": "1", "text": "hi"}]},
    "claude.json": [{"name": "t", "chat_messages": [{"sender": "human", "text": "hi"}]}],
}


@each_of("name", CHATS)
def test_a_chat_export_is_never_text_with_braces(tmp_path, name):
    path = written(tmp_path / name, json.dumps(CHATS[name], indent=1))
    for spec in (path, tmp_path):
        with pytest.raises(DataError, match=r"chat export.*docs/own-text\.md"):
            prepare(str(spec), cache_dir=tmp_path / "cache")
    whole = written(tmp_path / "text.json", '{"text": "hi", "mapping": {}}')
    assert read(whole) == [b"hi"]
    slack = written(tmp_path / "slack.json", '[{"type": "message", "text": "hi"}]')
    assert read(slack) == [b"hi"]


def _npz():
    file = io.BytesIO()
    np.savez(file, a=np.arange(300, dtype=np.int16))
    return file.getvalue()


def _npy():
    file = io.BytesIO()
    np.save(file, np.arange(300, dtype=np.int16))
    return file.getvalue()


def _tar(mode):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    return file.getvalue()


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "application/epub+zip")
    return file.getvalue()


OTHERS = {
    "a.tar": (_tar("w"), r"is a tar archive, not text; .*tar -xf"),
    "a.tar.gz": (_tar("w:gz"), r"is a tar archive, not text; .*tar -xf"),
    "a.tgz": (_tar("w:gz"), r"is a tar archive"),
    "a.tar.bz2": (_tar("w:bz2"), r"is packed by bzip2, not text; .*bunzip2"),
    "a.zip": (_zip("a.txt"), r"is a zip archive, not text; .*unzip"),
    "a.docx": (_zip("[Content_Types].xml"), r"is a document of Office, not text; .*pandoc"),
    "a.epub": (_zip("mimetype"), r"is an e-book \(EPUB\), not text; .*pandoc"),
    "a.npy": (_npy(), r"is an array of NumPy, not text; keep it out"),
    "a.npz": (_npz(), r"is arrays of NumPy, not text"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"is a picture, not text"),
    "a.pdf": (b"%PDF-1.4\n1 0 obj\n", r"is a PDF document, not text; .*pdftotext"),
    "wide32": ("never wait, never lock".encode("utf-32-le"), r"looks like UTF-32LE without a"),
}


@each_of("name", OTHERS)
@each_of("suffix", ["", ".txt"])
def test_another_format_is_named_as_what_it_is(tmp_path, name, suffix):
    content, message = OTHERS[name]
    path = written(tmp_path / "d" / (name.replace(".gz", suffix) + suffix), content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert ("iconv" in str(caught.value)) == (name == "wide32")
    with pytest.raises(DataError, match=r"holds no text|has no readable text"):
        corpora.readable(str(tmp_path / "d"))


def test_zeros_of_other_data_are_not_taken_for_utf16(tmp_path):
    numbers = np.arange(2000, dtype="<i2").tobytes()
    with pytest.raises(DataError, match="is not text: a zero byte at offset 0"):
        read(written(tmp_path / "a.txt", numbers))


def test_markup_is_left_out_of_a_folder_and_read_by_its_name_with_a_note(tmp_path):
    folder = tmp_path / "d"
    for name in ("a.ipynb", "b.ipynb", "c.html", "mail.mbox"):
        written(folder / name, '{"cells": []}')
    with pytest.raises(DataError, match=r"d holds no text: 4 of 4 .*2 \.ipynb \(a notebook; .*nbc"):
        corpora.find(str(folder))
    written(folder / "a.txt", "text")
    corpus = corpora.find(str(folder))
    assert list(corpus.documents()) == [b"text"]
    assert "1 .html (a web page; unpack or convert it: pandoc -t plain" in corpus.notes()[1]
    assert "1 .mbox (mail with its headers and attachments; to convert it see" in corpus.notes()[1]
    for spec in (folder / "a.ipynb", folder / "*.ipynb"):
        (note,) = corpora.find(str(spec)).notes()
        assert "read as it stands, with all markup: a notebook; unpack or convert it: jup" in note


def test_a_link_to_a_folder_is_followed_once_and_loops_are_named(tmp_path):
    notes, away = tmp_path / "notes", tmp_path / "away"
    written(notes / "a.txt", "a")
    written(notes / "sub" / "b.txt", "b")
    written(away / "inner" / "c.txt", "c")
    (notes / "1 far").symlink_to(away)
    (notes / "2 again").symlink_to(away / "inner")
    (notes / "3 own").symlink_to(notes / "sub")
    (notes / "sub" / "4 loop").symlink_to(notes)
    (away / "5 up").symlink_to(tmp_path)
    (notes / "6 nowhere").symlink_to(tmp_path / "gone")
    corpus = corpora.readable(str(notes))
    assert list(corpus.documents()) == [b"c", b"a", b"b"]
    assert {one.path.name: one.reason for one in corpus.skipped if one.kind == "linked"} == {
        "2 again": "a link to a folder that is read already",
        "3 own": "a link to a folder that is read already",
        "4 loop": "a link to a folder above it",
        "5 up": "a link to a folder above it",
    }
    left_out, bad = corpus.notes()[1:]
    assert "sub/4 loop is a link to a folder above it" in left_out
    assert "6 nowhere: cannot be read" in bad


def test_a_glob_reads_a_file_once_however_many_links_lead_to_it(tmp_path):
    written(tmp_path / "sub" / "a.txt", "a")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "again.txt").symlink_to(tmp_path / "sub" / "a.txt")
    corpus = corpora.find(str(tmp_path / "**" / "*.txt"))
    assert list(corpus.documents()) == [b"a"]
    assert "linked (the same file as" in corpus.notes()[1]


def test_several_texts_are_one_corpus_each_of_which_is_read_as_alone(tmp_path):
    written(tmp_path / "notes" / "a.txt", "a")
    written(tmp_path / "notes" / "b.png", b"\x89PNG\0")
    written(tmp_path / "notes" / "c.txt", b"\0")
    written(tmp_path / "my letter.md", "letter")
    written(tmp_path / "talks" / "train.jsonl", '{"text": "t"}\n')
    written(tmp_path / "talks" / "valid.jsonl", '{"text": "v"}\n')
    specs = [f"{tmp_path}/notes", f"{tmp_path}/my letter.md", f"{tmp_path}/talks"]
    corpus = corpora.readable("\n".join(specs))
    assert list(corpus.documents()) == [b"a", b"letter", b"t"]
    assert corpus.validation is not None
    assert list(corpus.validation()) == [b"v"]
    assert [one.path.name for one in corpus.skipped] == ["b.png", "c.txt"]
    assert [Path(part.source).name for part in corpora.parts(corpus)] == [
        "notes", "my letter.md", "train.jsonl", "valid.jsonl",
    ]  # fmt: skip
    bad = written(tmp_path / "bad.txt", b"\0")
    with pytest.raises(DataError, match="bad.txt is not text"):
        corpora.readable(f"{tmp_path}/notes\n{bad}")


def test_a_file_that_two_names_lead_to_is_refused(tmp_path):
    written(tmp_path / "notes" / "a.txt", "a")
    with pytest.raises(DataError, match=r"names \S+a.txt more than once.*name every file"):
        corpora.find(f"{tmp_path}/notes\n{tmp_path}/notes/a.txt")


def test_messages_about_stored_tokens_name_the_text_of_this_call(tmp_path):
    for name in ("first", "second"):
        for number in range(12):
            written(tmp_path / name / f"{number}.txt", b"caf\xe9 " * 200 + bytes([48 + number]))
    (tmp_path / "link").symlink_to(tmp_path / "second")
    for name, fresh in (("first", True), ("second", False), ("link", False)):
        result = prepare(str(tmp_path / name), "bpe:300", cache_dir=tmp_path / "cache")
        assert result.fresh == fresh
        assert result.source == str(tmp_path / name)
        assert any(f"{tmp_path / name}/0.txt; if that is Latin-1" in one for one in result.notes)
        with pytest.raises(DataError, match=rf"^{tmp_path / name} is too short"):
            result.open(100_000)


def test_a_python_without_xz_is_one_sentence():
    code = "import sys; sys.modules['_lzma'] = None; from mlxhog.cli import main; "
    code += "sys.exit(main(['train', '--steps', '1', '--dry-run']))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 3
    assert "this Python was built without xz" in process.stderr
    assert "Traceback" not in process.stderr
