"""Files become documents: a table of what is read as what, and a table of what is refused."""

import gzip
import importlib
import io
import json
import lzma
import subprocess
import sys
from unittest.mock import Mock

import pyarrow as pa
import pytest
from pyarrow import parquet

from mlxhog.data import corpora, tables, textfiles
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError, EnvironmentLacks
from tests.data.token_files import documents_of, written
from tests.pairs import each_of


def read(path, text_key=None, *, split=False):
    return [text for _, text in textfiles.documents(path, text_key, split=split)]


def table(**columns):
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def packed_by_zstd(*parts):
    frames = []
    for part in parts:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(part)
        frames.append(sink.getvalue().to_pybytes())
    return b"".join(frames)


LINES = b'{"text": "one"}\n{"text": "two"}\n'
LIST = b'[\n  {"text": "one"},\n  {"text": "two"}\n]\n'
ROWS = b'id,text\n1,one\n2,"two"\n'
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TEXT = "no lock \u2192 n\xe9ver wait \U0001f417"
ONE_TWO = [b"one", b"two"]

READ = [  # name, content, documents
    *((f"a{suffix}", b"1\n\n2\n", [b"1\n\n2\n"]) for suffix in (".txt", ".md", ".py", "")),
    ("a.jsonl", LINES, ONE_TWO),
    ("A.JSONLINES", LINES, ONE_TWO),
    ("a.json", LINES, ONE_TWO),
    ("a.json", LIST, ONE_TWO),
    ("a.json", json.dumps({"text": "one"}, indent=1).encode(), [b"one"]),
    ("dump", LINES, ONE_TWO),
    ("dump.of_today", LIST, ONE_TWO),
    ("part", table(text=["one", " ", "two"], id=[1, 2, 3]), ONE_TWO),
    ("a.parquet", table(prompt=["p"], completion=["c"]), [b"p\nc"]),
    ("a.parquet", table(messages=[TURNS]), [b"User: hi\nAssistant: yo"]),
    ("a.csv", ROWS, ONE_TWO),
    ("a.csv", '\ufefftext;id\r\n"a,\nb ""c""";1\r\ncaf\xe9;2\r\n', [b'a,\nb "c"', b"caf\xc3\xa9"]),
    ("A.TSV", "id\ttext\n1\tone\n2\ttwo\n", ONE_TWO),
    ("a.tsv", '1\ttext\n2\t"one\n3\ttwo"\n', [b'"one', b'two"']),  # Tatoeba has no quoting
    ("a.tsv.gz", gzip.compress(b'text\n"We walk," she said.\n'), [b'"We walk," she said.']),
    ("a.tsv", '1\ttext\n2\t"one\ttwo\nthree ""4"""\n', [b'one\ttwo\nthree "4"']),  # pandas has
    ("a.tsv", 'text\n"one"\n"two"\n', ONE_TWO),
    ("a.tsv", '1\ttext\r\n2\t"one\r\n\r\n3\ttwo\r\n\r\n', [b'"one', b"two"]),  # blank lines
    (
        "a.jsonl",
        json.dumps({"prompt": TURNS, "completion": TURNS}),
        [b"User: hi\nAssistant: yo\nUser: hi\nAssistant: yo"],
    ),
    (
        "a.parquet",
        table(messages=[[*TURNS, {**TURNS[1], "weight": 0}]]),
        [b"User: hi\nAssistant: yo\nAssistant: yo"],
    ),
    *(
        ("a.md", line, [line])
        for line in [b"version https://git-lfs.github.com/spec/v1 is prose\n"]
    ),
    ("a.txt.gz", gzip.compress(LINES), [LINES]),
    ("a.jsonl.GZ", gzip.compress(LINES), ONE_TWO),
    ("a.jsonl", lzma.compress(LINES), ONE_TWO),
    ("a.txt.zst", packed_by_zstd(LINES, b"x" * 900_000, b""), [LINES + b"x" * 900_000]),
    ("a.jsonl.zst", packed_by_zstd(LINES[:9], LINES[9:]), ONE_TWO),
    ("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n", [b"one\ntwo\n"]),
    ("a.jsonl", b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}\r\n', [b"one\ntwo"]),
    ("a.jsonl", b'{"text": "\\ud800"}\n', [b"?"]),
    ("a.txt", b" \n", []),
    ("a.jsonl", b'{"text": ""}\n\n{"text": "x"}\n{"text": "\\n"}\n', [b"x"]),
    ("a.jsonl", '{"text": "t", "content": "c", "score": NaN}', [b"t"]),
    ("a.jsonl", '{"content": "c", "prompt": "p", "completion": "q"}', [b"c"]),
    ("slack.json", '[{"type": "message", "text": "hi"}]', [b"hi"]),
    *(("a", text, [text]) for text in (b"{}\n", b"{a}\n", b"[1] b\n", b"{\n  open\n", b"a {x}\n")),
    ("a.jsonl", f'\ufeff{{"text": "{TEXT}"}}\r\n', [TEXT.encode()]),
]


@pytest.mark.parametrize(("name", "content", "documents"), READ, ids=range(len(READ)))
def test_a_file_is_read_as_what_it_is_alone_and_in_a_folder(tmp_path, name, content, documents):
    path = written(tmp_path / "d", {name: content}) / name
    key = "text" if textfiles.kind(path) in textfiles.CSV_SUFFIXES else None
    pieces = read(path, key)
    if sum(map(len, documents)) > textfiles.DOCUMENT_BYTES:
        pieces, documents = [b"".join(pieces)], [b"".join(documents)]
    assert pieces == documents
    if documents:
        corpus, _ = corpora.readable(corpora.find(str(tmp_path / "d"), key))
        assert b"".join(documents_of(corpus)) == b"".join(documents)


HALF = gzip.compress(b'{"text": "one"}\n' * 100)[:-9]
ZSTD = packed_by_zstd(LINES)
GOOD = '{"text": "good"}\n'

REFUSED = [  # name, content, text_key, fragment of the error
    *((name, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "text",
       "is a Git LFS pointer") for name in ("a.txt", "a.jsonl", "a.parquet", "a.csv", "a")),
    *((name, content, None, "is cut short or damaged") for name, content in [
        ("a.txt.gz", HALF), ("a.jsonl.gz", HALF), ("a.txt.xz", lzma.compress(LINES)[:-5]),
        ("a.txt.zst", ZSTD[:-2]), ("a.jsonl.zst", ZSTD + ZSTD[:3]),
    ]),
    ("a.txt", b"caf\xc3", None, "is not UTF-8 text: a byte that no text has at offset 3; keep"),
    ("a.txt", b"x" * 1_000_000 + b"\0", None, "a byte that no text has at offset 1,000,000;"),
    ("a.txt", b"x" * 999_999 + b"\xe9 ", None, "at offset 999,999; keep it out of --data, or"),
    ("a.txt", "never wait".encode("utf-16-le"), None, "convert it: iconv -f UTF-16LE -t UTF-8"),
    *((name, f"\ufeff{TEXT}".encode(f"{kind}-{end}"), "text", f"convert it: iconv -f {kind} -t")
      for name, kind, end in (("a.txt", "UTF-16", "le"), ("a.jsonl", "UTF-16", "be"),
                              ("a.csv", "UTF-32", "le"), ("a.txt", "UTF-32", "be"))),
    *((name, begin + b"caf\xe9\n", "text", "is not UTF-8 text; keep it out of --data, or convert")
      for name, begin in [("a.jsonl", b'{"text": '), ("a.csv", b"id,text\n1,")]),
    ("a.jsonl", GOOD + '{"body": "long text", "id": "7"}', None,
     "a.jsonl:2: no key 'text'; keys are 'body', 'id'; --text-key names the key of the text, or"),
    ("a.jsonl", GOOD + '{"text": 7}', None, "a.jsonl:2: 'text' is 7, expected text"),
    ("a.jsonl", GOOD + '["text"]', None, "a.jsonl:2: ['text'] is not an object"),
    ("a.jsonl", GOOD + '{"text": "broken', None, "a.jsonl:2: not JSON"),
    ("a.jsonl", "[" * 100_000 + "\n", None, "a.jsonl:1: not JSON (lists or objects are nested"),
    *(("a.jsonl", json.dumps({"messages": messages}), None, f"a.jsonl:1: {fault}")
      for messages, fault in [
        ("x", "messages is 'x'; expected a list such as"), ([], "messages is []; expected a list"),
        ([{"role": "robot"}], "message 1 is {'role': 'robot'}; expected a role (system, dev"),
        ([{"role": "user"}], "message 1 has no content; expected a text, or parts of type text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}],
         "the content of message 1 has {'type': 'image_url'}; only text is supported"),
        ([{"role": "assistant", "tool_calls": 3}], "the tool_calls of message 1 are 3; expected"),
    ]),
    *(("a.jsonl", json.dumps(dict.fromkeys(keys.split(), value)), key, f"a.jsonl:1: {fault}")
      for keys, value, key, fault in [
        ("question answer response", "a", None, "no key 'text'; keys are 'question', 'answer',"),
        ("question label", "a", None, "no key 'text'; keys are 'question', 'label'; --text-key"),
        ("question answer", 1, None, "'question' is 1, expected text"),
        ("question reply", "a", "question,answer", "no key 'answer'; keys are"),
    ]),
    ("a.json", '{"text": "one"', None, "a.json: not JSON"),
    ("a.json", '[{"text": "one"}, {"id": 2}]', None, "a.json, record 2: no key 'text'"),
    ("a.csv", ROWS, None, "is a table; --text-key names the column of its text: 'id', 'text'"),
    ("a.csv", ROWS, "txet", "a.csv:2: no key 'txet'; keys are 'id', 'text'"),
    ("a.csv", b'id,text\n1,"x\n', "text", "a.csv:2: not CSV"),
    ("a.csv", b"id,text\n1\n", "text", "a.csv:2: 'text' is None, expected text"),
    ("a.csv", b"id,text\n1,a, b\n", "text", "a.csv:2: not CSV (3 fields, and the header has 2)"),
    ("a.parquet", table(body=["x"], id=[1]), None, "a.parquet, row 1: no key 'text'; keys are"),
    ("a.parquet", table(text=["x", None]), None, "a.parquet, row 2: 'text' is None"),
    ("a.parquet", table(text=["x"])[:-9], None, "is damaged or not Parquet"),
    ("a.tar", b"a.txt" + bytes(99), None, "at offset 5; keep it out of --data; unpack it: tar -xf"),
    *((name, b"\x89\xd0PK", None, f"it: {command} ") for name, command in [
        ("a.tgz", "tar -xf"), ("a.zip", "unzip"), ("a.epub", "pandoc -t plain -o text.txt"),
        ("a.pdf", "pdftotext"), ("a.ipynb", "jupyter nbconvert --to markdown"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "key", "fragment"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_cannot_be_read_is_named_with_its_fault(tmp_path, name, content, key, fragment):
    path = written(tmp_path, {name: content}) / name
    with pytest.raises(DataError) as refused:
        read(path, key)
    assert str(refused.value).startswith(str(path))
    assert fragment in str(refused.value)


@each_of(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "%s"}\n' % ("x" * 2000), "more than 1,000 bytes"),
        ("a.csv", 'text\nx\n"%s"\n' % ("x" * 2000), "field larger than"),
        ("a.csv", "text\nx\n%s\n" % ('"\n",' * 2000), "a row has more than 4,000 bytes"),
        ("a.json", LIST, r"more than 20 bytes.*jq -c '\.\[\]' \S+a\.json"),
        (
            "a.jsonl",
            '{"text": ' + json.dumps([[]] * 60) + "}\n",
            "a.jsonl:1 has more than 99 values",
        ),
        ("a.parquet", table(text=["x" * 2000]), "a row has more than 1,000 bytes"),
        (
            "a.txt.xz",
            lzma.compress(LINES, preset=9),
            r"xz needs more than 1,000,000 bytes of memory",
        ),
    ],
)
def test_what_is_too_long_is_refused_unread(tmp_path, monkeypatch, name, content, message):
    for module in (textfiles, tables):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(textfiles, "MAX_VALUES", 99)
    monkeypatch.setattr(textfiles, "XZ_BYTES", 1_000_000)
    monkeypatch.setattr("mlxhog.base.reading.MAX_BYTES", 20)
    path = written(tmp_path, {name: content}) / name
    with pytest.raises(DataError, match=message):
        read(path, "text")


def test_a_value_that_a_parquet_file_has_once_for_many_rows_is_not_many_times_in_memory(tmp_path):
    path = written(tmp_path, {"a.parquet": table(text=["x" * (1 << 20)] * 64)}) / "a.parquet"
    assert path.stat().st_size < 100_000
    with parquet.ParquetFile(path) as file:
        assert tables._rows_at_once(file.metadata) == 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxhog.base.reading.MAX_BYTES", 3 << 20)
        with parquet.ParquetFile(path) as file:
            assert tables._rows_at_once(file.metadata) == 2
        assert sum(map(len, read(path))) == 64 << 20


def test_xz_streams_may_follow_each_other_with_zeros_between(tmp_path):
    content = lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4)
    assert read(written(tmp_path, {"a.txt.xz": content}) / "a.txt.xz") == [b"one two"]


def test_a_package_that_is_missing_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", Mock(side_effect=ModuleNotFoundError))
    written(tmp_path, {"a.parquet": b"", "a.txt.zst": ZSTD})
    for spec, package in (
        (tmp_path / "a.parquet", "pyarrow"),
        (tmp_path / "a.txt.zst", "pyarrow"),
        ("hf:someone/something", "datasets"),
    ):
        with pytest.raises(EnvironmentLacks, match=f"{package}, .*: python -m pip install"):
            documents_of(corpora.find(str(spec)))


def test_a_lack_of_memory_is_no_damage_of_the_file(tmp_path, monkeypatch):
    written(tmp_path, {"a.jsonl": LINES, "b.txt": "good"})
    monkeypatch.setattr(textfiles, "_json", Mock(side_effect=MemoryError))
    with pytest.raises(EnvironmentLacks, match=r"a\.jsonl needs more memory"):
        read(tmp_path / "a.jsonl")


def test_a_python_without_xz_is_one_sentence():
    code = "import sys; sys.modules['_lzma'] = None; from mlxhog.cli import main; "
    code += "sys.exit(main(['train', '--steps', '1', '--dry-run']))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 3
    assert "this Python was built without xz" in process.stderr
    assert "Traceback" not in process.stderr


def test_documents_of_word_processors_are_text(tmp_path, monkeypatch):
    import docx
    from odf import table as odf_table
    from odf import text as odf_text
    from odf.opendocument import OpenDocumentText

    word, odt, row = docx.Document(), OpenDocumentText(), odf_table.TableRow()
    word.add_heading("Rivers")
    grid, odf_grid = word.add_table(1, 2), odf_table.Table()
    odt.text.addElement(odf_text.H(outlinelevel=1, text="Rivers"))
    for k, name in enumerate("ab"):
        grid.cell(0, k).text = name
        row.addElement(cell := odf_table.TableCell())
        cell.addElement(odf_text.P(text=name))
    odf_grid.addElement(row)
    odt.text.addElement(odf_grid)
    word.add_paragraph("caf\xe9")
    odt.text.addElement(odf_text.P(text="caf\xe9"))
    word.save(tmp_path / "a.DOCX")
    odt.save(tmp_path / "b.odt")
    written(tmp_path, {"bad.docx": b"PK", "bad.odt": "text"})
    corpus, scan = corpora.readable(corpora.find(str(tmp_path)))
    assert [b"".join(one.read()).decode() for one in corpus.parts] == ["Rivers\na\tb\ncaf\xe9\n"]
    assert scan.n_documents == 1
    assert "b.odt: equal to" in (note := corpus.skipped_files())
    assert note.count("damaged, encrypted or no") == 2
    monkeypatch.setitem(sys.modules, "docx", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install 'mlxhog\[office\]'"):
        list(textfiles.documents(tmp_path / "a.DOCX", None))


def test_changes_count_as_accepted_and_a_merged_cell_once(tmp_path):
    import docx
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    def xml(tag, content):
        return parse_xml(f"<w:{tag} {nsdecls('w')}>{content}</w:{tag}>")

    run = "<w:r><w:t>{}</w:t></w:r>".format
    word = docx.Document()
    grid = word.add_table(2, 3)
    grid.cell(0, 0).merge(grid.cell(1, 1)).text = "merged"
    grid.cell(0, 2).text = "alone"
    line = word.add_paragraph("one ")
    for tag, content in (
        ("ins", run("new ")), ("del", "<w:r><w:delText>old</w:delText></w:r>"),
        ("moveFrom", run("old")), ("sdt", f"<w:sdtContent>{run('field')}</w:sdtContent>"),
    ):  # fmt: skip
        line._p.append(xml(tag, content))
    math = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
    line._p.append(parse_xml(f"<m:oMath {math}><m:r><m:t> x = 1</m:t></m:r></m:oMath>"))
    control = xml("sdt", f"<w:sdtContent><w:p>{run('control')}</w:p></w:sdtContent>")
    word.element.body.insert(0, control)
    word.save(tmp_path / "a.docx")
    assert text_of(tmp_path / "a.docx") == "control\nmerged\talone\n\t\none new field x = 1\n"


def test_what_stands_beside_the_text_of_an_odt_is_left_out(tmp_path):
    from odf import dc, draw, office, svg
    from odf import text as odf_text
    from odf.opendocument import OpenDocumentText

    odt, line = OpenDocumentText(), odf_text.P(text="Hello")
    line.addElement(remark := office.Annotation())
    remark.addElement(dc.Creator(text="Ann"))
    remark.addElement(odf_text.P(text="do not publish"))
    line.addElement(note := odf_text.Note(noteclass="footnote"))
    note.addElement(odf_text.NoteCitation(text="1"))
    note.addElement(body := odf_text.NoteBody())
    body.addElement(odf_text.P(text="below"))
    line.addElement(frame := draw.Frame())
    frame.addElement(svg.Title(text="a picture"))
    line.addText(" world")
    odt.text.addElement(line)
    odt.save(tmp_path / "a.odt")
    assert text_of(tmp_path / "a.odt") == "Hello world\n"


def text_of(path):
    """The text of the only document of a file."""
    (part,) = corpora.find(str(path)).parts
    return b"".join(part.read()).decode()


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 18])
def test_marks_between_documents_cut_them_and_are_said(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(textfiles, "_READ_BYTES", read_bytes)
    story = "Once.\n\nThen."
    texts = {
        "a.txt": "\n<|endoftext|>\n".join([story] * 9),
        "b.txt": f"<|startoftext|>{story}<|endoftext|>\n<|startoftext|>{story}<|endoftext|>",
        "c.jsonl": json.dumps({"text": f"{story}<|endoftext|>{story}!"}),
        "d.py": 'END = "<|endoftext|>"',
        "e.txt": "a <|endo",
    }
    folder = written(tmp_path, texts)
    corpus = corpora.find(str(folder))
    found = {one.path.name: [text.decode() for text in one.read()] for one in corpus.parts}
    assert [one.strip() for one in found["a.txt"]] == [story] * 9
    assert [one.strip() for one in found["b.txt"]] == [story] * 2
    assert found["c.jsonl"] == [story, f"{story}!"]
    assert found["d.py"] + found["e.txt"] == [texts["d.py"], texts["e.txt"]]
    (note,) = corpus.notes()
    assert note.startswith("<|endoftext|> and <|startoftext|> in 3 of 5 files")


@pytest.mark.parametrize("read_bytes", [3, 1 << 18])
@pytest.mark.parametrize(
    ("separator", "content", "documents"),
    [
        (r"\n---\n", "a -- b\r\n---\r\nc\n---\n---d", ["a -- b", "c", "---d"]),
        ("\n***\n", "a\n***\nb", ["a", "b"]),
        (r"<doc \\t>", "a\n<doc \\t>\nb<|endoftext|>", ["a", "b<|endoftext|>"]),
        (r"\f", "a\f\fb", ["a", "b"]),
        ("§" * 40, f"a{'§' * 40}\n\n\nb{'§' * 39}", ["a", f"b{'§' * 39}"]),
        (None, "GPT-2 ends it with <|endoftext|>.", ["GPT-2 ends it with <|endoftext|>."]),
        ("", "a<|endoftext|>b", ["a<|endoftext|>b"]),
    ],
)
def test_a_separator_that_is_named_cuts_text_and_none_cuts_nothing(
    tmp_path, monkeypatch, read_bytes, separator, content, documents
):
    monkeypatch.setattr(textfiles, "_READ_BYTES", read_bytes)
    texts = {"a.txt": content, "b.py": content, "c.jsonl": json.dumps({"text": content})}
    corpus = corpora.find(str(written(tmp_path, texts)), separator=separator)
    for part in corpus.parts:
        assert [text.decode() for text in part.read()] == documents
    notes = corpus.notes()
    assert len(notes) == bool(separator)
    assert all("in 3 of 3 files: documents are cut there" in note for note in notes)
    assert "\n" not in "".join(notes)


def test_a_large_file_of_prose_splits_at_blank_lines_and_loses_nothing(tmp_path):
    paragraphs = [f"{i} " + "word " * (i % 300) + "\n" * (2 + i % 3) for i in range(600)]
    path = written(tmp_path, {"book.txt": "".join(paragraphs)}) / "book.txt"
    pieces = read(path, split=True)
    assert b"".join(pieces) == path.read_bytes()
    assert all(len(piece) >= textfiles.PIECE_BYTES for piece in pieces[:-1])
    assert all(piece.endswith(b"\n\n") and not piece.startswith(b"\n") for piece in pieces)
    assert len(pieces) > 50
    assert documents_of(corpora.find(str(tmp_path))) == pieces
    assert len(read(path)) == 1
    for name, copies in (("small.txt", 100), ("code.py", 50_000)):
        written(tmp_path, {name: "word\n\n" * copies})
        assert len(read(tmp_path / name, split=True)) == 1


@pytest.mark.parametrize("line", [b"never wait\n", b"never wait\n\n", "caf\xe9".encode()])
def test_a_long_text_becomes_documents_of_at_most_a_mebibyte(tmp_path, line):
    text = line * ((3 << 20) // len(line))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text, 1))
    for split in (False, True):
        pieces = read(tmp_path / "a.txt.gz", split=split)
        assert b"".join(pieces) == text
        for piece in pieces:
            assert len(piece) <= textfiles.DOCUMENT_BYTES
            piece.decode()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder for data sets; the package keeps what it makes of them in another."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "set"


def test_a_data_set_is_a_folder_of_data_files_or_a_saved_one_with_its_own_validation_text(hub):
    from datasets import Dataset

    written(hub / "data", {"train-0.parquet": table(text=["one", "", "two"], id=[1, 2, 3])})
    written(hub / "data", {"validation-0.parquet": table(text=["three"], id=[4])})
    corpus = corpora.find(f"hf:{hub}")
    assert documents_of(corpus) == ONE_TWO == documents_of(corpus)
    assert documents_of(corpus, validation=True) == [b"three"]
    assert prepare(f"hf:{hub}").rule == "given"
    words, saved = hub.parent / "words", str(hub.parent / "saved")
    written(words, {"train.csv": "text,id\nnull,1\n,2\nNA,3\n"})  # a word for nothing is a word
    assert documents_of(corpora.find(f"hf:{words}")) == [b"null", b"NA"]
    Dataset.from_dict({"body": ["one", "two"], "n": [1, 2]}).save_to_disk(saved)
    assert documents_of(corpora.find(f"hf:{saved}", "body")) == ONE_TWO
    with pytest.raises(DataError, match=r"train row 1: no key 'text'; keys are 'body', 'n'"):
        documents_of(corpora.find(f"hf:{saved}"))


def test_a_data_set_that_cannot_be_loaded_is_named_with_the_cause(hub):
    from datasets import Dataset, DatasetDict

    with pytest.raises(DataError, match=r"hf:no/such cannot be loaded: .*hf:OWNER/NAME,SUBSET"):
        corpora.find("hf:no/such")
    written(hub / "bad", {"train.jsonl": '{"text": "a"}\n{"text": broken\n'})
    with pytest.raises(DataError, match=r"cannot be loaded: .*JSON parse error"):
        corpora.find(f"hf:{hub / 'bad'}")
    parts = {name: Dataset.from_dict({"text": ["x"]}) for name in ("a", "b")}
    DatasetDict(parts).save_to_disk(str(hub / "saved"))
    with pytest.raises(DataError, match=r"no split 'train'; its splits are 'a', 'b'"):
        corpora.find(f"hf:{hub / 'saved'}")
