"""Text files become documents: every format, every kind of damage."""

import gzip
import importlib
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.data import textfiles
from mlxhog.errors import DataError, EnvironmentLacks
from tests.pairs import each_of


def read(path, text_key=None, *, split=False):
    return list(textfiles.documents(path, text_key, split=split))


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@each_of("suffix", [".txt", ".md", ".py", ""])
def test_a_text_file_is_one_document(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_text("first\n\nsecond\n")
    assert read(path) == [b"first\n\nsecond\n"]


@each_of("name", ["a.txt", "a.jsonl"])
@each_of("pack", [gzip, lzma])
def test_compressed_files_read_like_plain_ones(tmp_path, name, pack):
    plain = tmp_path / name
    plain.write_text('{"text": "one"}\n{"text": "two"}\n')
    compressed = tmp_path / (name + (".gz" if pack is gzip else ".xz"))
    compressed.write_bytes((gzip if pack is gzip else lzma).compress(plain.read_bytes()))
    assert read(compressed) == read(plain)


@each_of("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.gz", "a.txt.xz", "a.jsonl.xz", "a.tsv.xz"])
@each_of("damage", ["truncated", "foreign"])
def test_a_damaged_compressed_file_is_named(tmp_path, name, damage):
    pack = gzip if name.endswith("gz") else lzma
    whole = pack.compress(b'{"text": "one"}\n' * 100)
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"plain text")
    for key in ("text", None):
        with pytest.raises(DataError, match=rf"{name} is cut short or damaged"):
            read(path, key)


def test_the_suffix_of_compression_may_be_in_capitals(tmp_path):
    path = tmp_path / "D.TXT.GZ"
    path.write_bytes(gzip.compress(b"one"))
    assert textfiles.kind(path) == ".txt"
    assert read(path) == [b"one"]


@pytest.fixture
def zstd():
    """What packs, and reads `.zst` here: a part of Python from 3.14 on, else a package."""
    return pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "zstandard")


@each_of(
    ("name", "content"),
    [
        ("a.txt", "one\ntwo\n" * 1000),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n' * 20_000),
        ("a.csv", '\ufeffid;text\n1;"o\nne"\n2;two\n'),
        ("A.TSV", "id\ttext\n1\tone\n"),
        ("a.txt", "x" * 10_000_000),
    ],
)
def test_zstd_files_read_like_plain_ones(tmp_path, zstd, name, content):
    plain, packed = tmp_path / name, tmp_path / (name + ".zst")
    plain.write_bytes(content.encode())
    half = len(plain.read_bytes()) // 2
    frames = [plain.read_bytes()[:half], plain.read_bytes()[half:], b""]
    packed.write_bytes(b"".join(map(zstd.compress, frames)))
    assert read(packed, "text") == read(plain, "text")
    assert textfiles.not_utf8(packed) is None


@each_of("name", ["a.txt.zst", "a.jsonl.zst", "a.csv.zst"])
@each_of("damage", ["truncated", "between frames", "foreign", "empty"])
def test_a_damaged_zstd_file_is_named(tmp_path, zstd, name, damage):
    whole = zstd.compress((b"text\n" if ".csv" in name else b'{"text": "one"}\n') * 100)
    content = {
        "truncated": whole[:-2],
        "between frames": whole + whole[:3],
        "foreign": b"plain text",
        "empty": b"",
    }[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is cut short or damaged"):
        read(tmp_path / name, "text")


def test_zstd_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    (tmp_path / "a.jsonl.zst").write_bytes(b"packed")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(EnvironmentLacks, match="zstandard: python -m pip install zstandard"):
        read(tmp_path / "a.jsonl.zst")


def test_crlf_becomes_lf_and_a_byte_order_mark_goes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    records = tmp_path / "a.jsonl"
    records.write_bytes(b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}\r\n')
    assert read(path) == [b"one\ntwo\n"]
    assert read(records) == [b"one\ntwo"]


def test_bytes_that_are_not_utf8_survive(tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9")
    records = tmp_path / "latin1.jsonl"
    records.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800"}\n')
    assert read(path) == [b"caf\xe9"]
    assert read(records) == [b"caf\xe9", b"?"]


def test_documents_without_text_are_left_out(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    records = jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": "x"}, {"text": "\n"})
    assert read(tmp_path / "empty.txt") == []
    assert read(records) == [b"x"]


@each_of(
    ("record", "text"),
    [
        ({"text": "t", "content": "c"}, b"t"),
        ({"content": "c", "prompt": "p", "completion": "q"}, b"c"),
        ({"prompt": "p", "completion": "q"}, b"p\nq"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
         b"User: hi\nAssistant: yo"),
    ],
)  # fmt: skip
def test_records_are_read_by_the_usual_keys(tmp_path, record, text):
    assert read(jsonl(tmp_path / "a.jsonl", record)) == [text]


def test_text_key_chooses_another_key(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "t", "body": "b"})
    assert read(path, "body") == [b"b"]


@each_of(
    ("line", "message"),
    [
        ('{"body": "long text", "id": "7"}',
         r"a.jsonl:2: no key 'text'; keys are 'body', 'id'; .*: --text-key body"),
        ('{"id": 7}', r"a.jsonl:2: no key 'text'; keys are 'id'; none of them has text"),
        ('{"text": 7}', r"a.jsonl:2: 'text' is a number, expected text"),
        ('["text"]', r"a.jsonl:2: a list, expected an object"),
        ('{"text": "broken', r"a.jsonl:2: not JSON .* repair or delete this line"),
        ('{"messages": "x"}', r"a.jsonl:2: messages is 'x'; expected a list such as"),
        ('{"messages": [{"role": "x"}]}', r"a.jsonl:2: message 1 is .*; expected a role \(system,"),
        ('{"messages": [{"role": "user"}]}', r"a.jsonl:2: message 1 has no content"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_the_way_out(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_binary_file_is_refused_wherever_its_first_zero_is(tmp_path):
    for before in (b"PK\x03", b"x" * 1_000_000):
        (tmp_path / "a.txt").write_bytes(before + b"\0")
        offset = f"{len(before):,}"
        with pytest.raises(DataError, match=rf"a.txt is not text: a zero byte at offset {offset};"):
            read(tmp_path / "a.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.txt cannot be read: No such file"):
        read(tmp_path / "gone.txt")


def test_a_large_file_of_prose_splits_at_blank_lines_and_loses_nothing(tmp_path):
    paragraphs = [f"{i} " + "word " * (i % 300) + "\n" * (2 + i % 3) for i in range(600)]
    path = tmp_path / "book.txt"
    path.write_text("".join(paragraphs))
    pieces = read(path, split=True)
    assert b"".join(pieces) == path.read_bytes()
    assert all(len(piece) >= textfiles.PIECE_BYTES for piece in pieces[:-1])
    assert all(piece.endswith(b"\n\n") and not piece.startswith(b"\n") for piece in pieces)
    assert len(pieces) > 50
    assert len(read(path)) == 1


@pytest.mark.parametrize("name", ["small.txt", "code.py"])
def test_small_files_and_code_are_not_split(tmp_path, name):
    path = tmp_path / name
    path.write_text("word\n\n" * (100 if name == "small.txt" else 50_000))
    assert len(read(path, split=True)) == 1


MARKED = {
    "UTF-8": "utf-8-sig",
    "UTF-16": "utf-16",
    "UTF-16 of another machine": "utf-16-be",
    "UTF-32": "utf-32",
    "UTF-32 of another machine": "utf-32-be",
}
TEXT = "no lock \u2192 n\xe9ver wait \U0001f417"
CONTENTS = {
    "a.txt": (f"{TEXT}\r\n", f"{TEXT}\n"),
    "a.jsonl": (f'{{"text": "{TEXT}"}}\n' * 2, TEXT),
    "a.csv": (f"id,text\n1,{TEXT}\n", TEXT),
}


@each_of("encoding", MARKED.values(), ids=MARKED)
@each_of("name", CONTENTS)
@each_of("packed", [False, True])
def test_text_with_a_byte_order_mark_is_decoded(tmp_path, encoding, name, packed):
    content, text = CONTENTS[name]
    mark = "\ufeff" if encoding.endswith("-be") else ""
    data = (mark + content).encode(encoding)
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    documents = read(path, "text")
    assert set(documents) == {text.encode()}
    assert len(documents) == (2 if name == "a.jsonl" else 1)
    assert textfiles.not_utf8(path) is None


@each_of("name", ["a.txt", "a.jsonl", "a.csv"])
def test_text_that_is_not_encoded_as_its_mark_says_is_refused_with_the_place(tmp_path, name):
    line = '{"text": "a"}\n' if name == "a.jsonl" else "text\n"
    content = ("\ufeff" + line * 50_000).encode("utf-16-le")
    (tmp_path / name).write_bytes(content + b"\x00\xd8" + content)  # half a pair
    place = f"{len(content):,}"
    with pytest.raises(
        DataError, match=rf"{name} begins with the mark of UTF-16, and byte {place} "
    ):
        read(tmp_path / name, "text")


@each_of("encoding", ["utf-16-le", "utf-16-be"])
@each_of("name", ["a.txt", "a.jsonl", "a.csv"])
@each_of("packed", [False, True])
def test_utf16_without_a_mark_is_refused_with_a_command_that_converts_it(
    tmp_path, encoding, name, packed
):
    folder = tmp_path / "my 'notes'"
    folder.mkdir()
    content = '{"text": "never wait, add without a lock"}\n' * 9
    data = content.encode(encoding)
    path = folder / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    name_of = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(DataError, match=f"looks like {name_of} without a byte-order") as caught:
        read(path, "text")
    subprocess.run(str(caught.value).partition("convert it: ")[2], shell=True, check=True, cwd="/")
    assert path.with_name(f"a.utf8{Path(name).suffix}").read_text() == content


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (b"plain", None),
        ("caf\xe9 \u20ac".encode(), None),
        (b"caf\xe9 x", (3, 0xE9)),
        (b"x" * (1 << 20) + b"\xe9\x20", (1 << 20, 0xE9)),
        (b"x" * ((1 << 20) - 1) + b"\xe2\x82\xac", None),
        (b"x" * ((1 << 20) - 1) + b"\xe2\x28", ((1 << 20) - 1, 0xE2)),
        (b"ends in\xe2\x82", (7, 0xE2)),
    ],
    ids=range(7),
)
def test_the_first_byte_that_is_not_utf8_is_found_where_it_is(tmp_path, content, first):
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    assert textfiles.not_utf8(tmp_path / "a.txt") == first
    assert textfiles.not_utf8(tmp_path / "a.txt.gz") == first
