"""What a name stands for: a corpus, a file, the text files of a folder; names divide them."""

import errno
import gzip
import importlib
import os
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from mlxhog.base import darwin
from mlxhog.data import corpora, textfiles, validation_set
from mlxhog.data.prepare import prepare
from mlxhog.data.split import KnownText
from mlxhog.errors import DataError
from tests.cli.command import said, told
from tests.data.token_files import documents_of, text_of, written
from tests.pairs import each_of


def texts(spec, text_key=None):
    return documents_of(corpora.find(str(spec), text_key))


def readable(spec, text_key=None, **how):
    return corpora.readable(corpora.find(str(spec), text_key), **how)[0]


def skipped(folder, text_key=None):
    """The files of a folder that are skipped -> why."""
    corpus = readable(folder, text_key)
    return {str(one.path.relative_to(folder)): one.reason for one in corpus.skipped}


def refuse(monkeypatch, names, code):
    """Let the system refuse files and folders, as a user who is not root sees it."""

    def checked(call):
        def checking(path, *how, **at):
            if Path(os.fspath(path)).name in names:
                raise PermissionError(code, os.strerror(code), str(path))
            return call(path, *how, **at)

        return checking

    for name in ("scandir", "open"):
        monkeypatch.setattr(os, name, checked(getattr(os, name)))


CONTENTS = {
    "half.txt.gz": (gzip.compress(b"never wait " * 50)[:-9], "cut short or damaged"),
    "table.parquet": (b"PAR1 and no more", "not Parquet"),
    "lines.jsonl": (b'{"text": "good"}\n{"text": "cut\n', "line 2: not JSON"),
    "wrong.txt": (b"text\0", "not UTF-8 text: a byte that no text has at offset 4"),
    "empty.txt": (b"", "no text"),
    "blank.md": (b" \n\n", "no text"),
}
BAD = {name: reason for name, (_, reason) in CONTENTS.items()} | {
    "pipe.txt": "a pipe",
    "zero.txt": "a pipe or a device",
    "nowhere.txt": "cannot be read: No such file",
}
"""File -> what is wrong with it."""


def make_bad(folder):
    """Write a folder of nothing but bad files."""
    written(folder, {name: content for name, (content, _) in CONTENTS.items()})
    os.mkfifo(folder / "pipe.txt")
    (folder / "zero.txt").symlink_to("/dev/zero")
    (folder / "nowhere.txt").symlink_to("gone.txt")


def test_a_bad_file_is_an_error_if_it_is_named_itself_or_nothing_else_is_there(tmp_path):
    make_bad(tmp_path / "bad")
    for name, reason in BAD.items():
        with pytest.raises(DataError, match=reason.removeprefix("line 2: ")):
            prepare(str(tmp_path / "bad" / name))
    written(tmp_path, {"a.txt": "a", "b.txt": b"\0"})
    with pytest.raises(DataError, match="b.txt is not UTF-8 text"):
        readable(f"{tmp_path}/a.txt\n{tmp_path}/b.txt")
    with pytest.raises(DataError, match="has no readable text: 9 of 9 files") as caught:
        readable(f"{tmp_path}/a.txt\n{tmp_path}/bad")
    assert all(name in str(caught.value) for name in BAD)


def test_nothing_of_a_bad_file_is_trained_and_a_note_names_few_of_many(tmp_path):
    folder = written(tmp_path / "a", {f"{c}.txt": f"text {c} " * 9 for c in "abcdefgh"})
    alone = prepare(str(folder))
    written(folder, {"c.jsonl": '{"text": "good"}\n' * 1000 + "{"})
    written(folder, {f"{number:02}.md": "" for number in range(60)})
    beside = prepare(str(folder))
    assert (beside.train.path, beside.corpus_sha256) == (alone.train.path, alone.corpus_sha256)
    note = beside.notes[0]
    assert note.startswith("61 of 69 files skipped: ")
    assert "c.jsonl: line 1001: not JSON" in note
    assert "04.md and 55 more: no text in it" in note
    with pytest.raises(DataError, match=r"--strict-data refuses them: 61 of 69.* and 10 more: no "):
        readable(folder, strict=True)


def test_a_resumed_run_names_only_the_files_that_are_skipped_anew(tmp_path):
    texts = {f"{n}.md": f"{n} lock free " * 99 for n in range(9)}
    folder = written(tmp_path / "d", {**texts, "a.zip": b"PK\3", "#b#": "draft"})
    (first := prepare(str(folder)).text).write(tmp_path)
    written(folder, {"c.pdf": b"%PDF\xff"})
    (note,) = prepare(str(folder), known=KnownText.read(tmp_path), resumes=True).notes
    assert note.startswith("2 files skipped as before; 1 of 10 files skipped: c.pdf")
    (note,) = prepare(str(folder), known=first).notes  # another run
    assert note.startswith("3 of 12 files skipped: ")


def test_what_cannot_be_read_or_has_an_odd_name_is_skipped_and_named(tmp_path, monkeypatch):
    written(tmp_path, {"a.txt": "a", "sub.txt": "c", "b.parquet": b"PAR1"})
    (tmp_path / "closed").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.txt")).write_bytes(b"\0")
    refuse(monkeypatch, ("closed", "sub.txt"), errno.EACCES)
    monkeypatch.setattr(importlib, "import_module", Mock(side_effect=ModuleNotFoundError))
    (note,) = readable(tmp_path).notes()
    note.encode()
    for text in (
        "b.parquet: reading .parquet needs pyarrow, which is not installed",
        "closed: a folder that cannot be opened: Permission denied",
        "sub.txt: cannot be read: Permission denied",
        "b\\xff.txt: not UTF-8 text",
    ):
        assert text in note


@each_of("name", [b"caf\xe9.txt", b"caf\xe9/a.txt"])
def test_text_at_a_path_that_is_not_utf8_is_refused_before_it_is_read(tmp_path, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"lock free " * 99)
    spec = path if path.parent == tmp_path else path.parent
    with pytest.raises(DataError, match=r"/caf\\xe9\S* is not UTF-8; rename it, or name a link"):
        prepare(str(spec))
    (link := tmp_path / "link").symlink_to(spec)
    assert prepare(str(link)).n_bytes == 990


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_a_folder_that_macos_protects_is_named_with_the_setting_that_opens_it(
    system, tmp_path, monkeypatch
):
    written(tmp_path, {"a.txt": "a", "Documents/b.txt": "b"})
    refuse(monkeypatch, ("Documents", "b.txt"), errno.EPERM)
    monkeypatch.setattr(darwin, "sys", SimpleNamespace(platform=system))
    setting = "System Settings, Privacy & Security, Files and Folders"
    (note,) = readable(tmp_path).notes()
    assert "Documents: a folder that cannot be opened: Operation not permitted" in note
    with pytest.raises(DataError, match="cannot be read: Operation not permitted") as caught:
        texts(tmp_path / "Documents" / "b.txt")
    for text in (note, str(caught.value)):
        assert (setting in text) == (system == "darwin")


TEXTS = {
    "README": b"read me\n",
    "LICENSE": "\u00a9 someone\n".encode(),
    "paper.1": b".TH X 1\nN\bNA\bA",
    "build.log": b"\x1b[1mok\x1b[0m\r\n",
    "cut.log": b"x" * (textfiles.HEAD_BYTES - 1) + "\u00e9".encode(),
    "packed.gz": gzip.compress(b"text"),
}
OTHERS = {
    "letter.latin": ("Gr\xfc\xdfe".encode("latin-1"), "iconv converts it"),
    "a.out": (b"\x7fELF\x02\x01\x01\0", "not text"),
    "random": (bytes(range(1, 256)) * 4, "not UTF-8"),
    "thesis.pdf": (b"%PDF-1.4\n1 0 obj", "pdftotext"),
    "id_rsa": (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "a private key"),
    "drawing.svg": (b"<svg/>", "not plain text"),
    "mail.mbox": (b"From a", "to convert it see docs/own-text.md"),
    "package.json": (b'{"name": "x"}', "its first record has no text; --text-key names another"),
    "table.csv": (b"id,text\n1,x\n", "--text-key names the column of its text"),
    ".hidden": (b"text", "hidden"),
    **{
        name: (b"text", "of a program")
        for name in "a.md~ #a.md# a.txt.bak a.bak2 Desktop.ini a.swp b.txt.swo a.kate-swp ~lock.a#"
        " ~$a.docx ~WRL0001.tmp a.save a.save.1 a.rej a.txt.old a.md.~1~".split()
    },
}


def test_a_file_of_no_known_kind_is_read_if_its_content_is_text(tmp_path, capsys):
    folder = written(tmp_path / "notes", TEXTS | {name: one for name, (one, _) in OTHERS.items()})
    reasons = skipped(folder)
    assert reasons.keys() == OTHERS.keys()
    for name, (_, fragment) in OTHERS.items():
        assert fragment in reasons[name]
    assert "table.csv" not in skipped(folder, "text")
    make_bad(folder / "bad")
    written(folder, {f"{k}.zip": b"PK\x03\x04" for k in range(9)})
    result = prepare(str(folder))
    assert len(result.corpus.files()) == len(TEXTS)
    (note,) = result.notes
    n_skipped = len(OTHERS) + len(BAD) + 9
    assert note.startswith(f"{n_skipped} of {n_skipped + len(TEXTS)} files skipped: ")
    assert all(f"bad/{name}" in note and reason in note for name, reason in BAD.items())
    assert "4.zip and 4 more: not plain text; unpack it: unzip FILE" in note
    words = ["train", "--data", str(folder), "--dry-run", "--workers", "torch:cpu"]
    assert len(told(capsys, *words)["data"]["skipped"]) == n_skipped  # lists all of them
    _, error = said(capsys, *words, "--strict-data", code=2)  # refuses, and names all of them
    assert all(f"bad/{name}" in error for name in BAD)
    for spec in (folder / ".hidden", folder / ".*"):
        assert texts(spec) == [b"text"]


def test_a_folder_without_text_says_what_it_holds_and_how_to_read_it(tmp_path):
    folder = tmp_path / "it's [mine]"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no files"):
        corpora.find(str(folder))
    written(folder, {"drawing.svg": "a = 1", "a.csv": "review\nr\n"})
    with pytest.raises(DataError, match=r"holds no text: 2 of 2 files skipped: .*--text-key names"):
        corpora.find(str(folder))
    assert texts(folder / "drawing.svg") == [b"a = 1"]
    assert texts(folder, "review") == [b"r"]


def test_a_folder_and_a_glob_give_their_files_in_the_order_of_paths_and_follow_no_link(tmp_path):
    folder = tmp_path / "notes"
    names = ("b.txt", "a/z.md", ".hidden.txt", "a/.git/x.txt", "c.log")
    written(folder, {name: name for name in names})
    (folder / "a" / "up").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    assert texts(folder) == [b"a/z.md", b"b.txt", b"c.log"]
    assert texts(folder / "*.*") == [b"b.txt", b"c.log"]
    assert texts(folder / "**" / "*.md")[0] == b"a/z.md"
    reasons = skipped(folder)
    assert reasons["a/up"].startswith("a link to a folder")
    assert "No such file" in reasons["nowhere"]
    with pytest.raises(DataError, match="no file matches"):
        corpora.find(str(folder / "*.nothing"))


def test_a_scan_of_a_folder_shows_how_far_it_is_and_an_interrupt_ends_it(tmp_path):
    folder = written(
        tmp_path / "notes", {f"{k}.txt": f"text {k} " * 50 for k in range(3)} | {"a.zip": "x"}
    )
    shown = []
    found = corpora.find(str(folder), None, lambda text: shown.append(text()))
    assert len(shown) == 4
    assert shown[-1].startswith(f"looking for text in {folder}: 3 files seen, ")
    corpora.readable(found, show=lambda text: shown.append(text()))
    assert shown[-1] == f"reading 700 B of text, 2 of 3 files; {folder}/2.txt"
    prepare(str(folder), "bpe:300", val="tail", show=lambda text: shown.append(text()))
    assert any(text.startswith("training the vocabulary bpe:300") for text in shown)
    assert any(text.startswith("tokenizing ") for text in shown)
    with pytest.raises(KeyboardInterrupt):
        corpora.find(str(folder), None, Mock(side_effect=KeyboardInterrupt))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")
@each_of("spec", ["/proc", "/proc/self", "/sys/kernel", "/proc/cpuinfo", "/proc/*info"])
def test_a_pseudo_file_system_is_refused(spec):
    with pytest.raises(DataError, match="is in a pseudo file system of the kernel"):
        corpora.find(spec)


def test_a_pseudo_file_system_below_a_folder_is_skipped_and_a_device_is_not_opened(
    tmp_path, monkeypatch
):
    folder = written(tmp_path / "root", {"a.txt": "text", "kernel/b.txt": "text"})
    lstat, open_file, opened = os.lstat, os.open, []

    def of_kernel(path, **how):
        is_its = Path(path) == folder / "kernel"
        return SimpleNamespace(st_dev=-7) if is_its else lstat(path, **how)

    monkeypatch.setattr(corpora, "_pseudo_devices", lambda: frozenset([-7]))
    with monkeypatch.context() as patch:
        patch.setattr(corpora.os, "lstat", of_kernel)
        found = corpora.find(str(folder))
    assert [one.name for one in found.files()] == ["a.txt"]
    assert [(one.path.name, one.reason) for one in found.skipped] == [
        ("kernel", "a pseudo file system of the kernel")
    ]

    def recorded(path, *how, **at):
        opened.append(path)
        return open_file(path, *how, **at)

    monkeypatch.setattr(os, "open", recorded)
    with pytest.raises(DataError, match="is a pipe or a device"):
        texts("/dev/null")
    assert "/dev/null" not in map(str, opened)


def test_several_texts_are_one_corpus_each_of_which_is_read_as_alone(tmp_path, monkeypatch):
    written(tmp_path, {
        "notes/a.txt": "a", "notes/c.txt": "\0", "letter.md": "letter",
        "talks/train.jsonl": '{"text": "t"}\n', "talks/valid.jsonl": '{"text": "v"}\n',
        "more/b.txt": "b", "more/valid.md": "b",
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    corpus = readable("notes\nletter.md\ntalks\nnotes/a.txt\nmore")
    assert documents_of(corpus) == [b"a", b"letter", b"t", b"b"]
    assert documents_of(corpus, validation=True) == [b"v"]  # one part's is that of all
    equal = {str(one.path): one.reason for one in corpus.skipped if "equal" in one.reason}
    assert equal == {"notes/a.txt": "equal to notes/a.txt", "more/valid.md": "equal to more/b.txt"}
    assert corpora.full_path("notes\nsotu") == f"{tmp_path / 'notes'}\nsotu"
    assert corpora.full_path("notes\n\nsotu\n") == f"{tmp_path / 'notes'}\nsotu"  # of YAML
    assert corpora.full_path("sotu") is None
    assert corpora.full_path("hf:talks,a\nhf:b,c") == f"hf:{tmp_path / 'talks'},a\nhf:b,c"
    assert corpora.full_path("hf:b,c") is None
    assert corpora.find("sotu\n").source == "sotu"
    assert [corpora.is_missing(spec) for spec in ("notes\nsotu\n", "notes\nb")] == [False, True]


@each_of(
    ("spec", "message"),
    [
        ("", r"the corpus is ''; name sotu"),
        ("hf:", "the corpus is 'hf:'"),
        ("sotuu", r"no corpus, file or folder 'sotuu'; did you mean 'sotu'\?"),
        ("novels", r"did you mean 'novel'\?"),
        ("qqqqq", r"no corpus, file or folder 'qqqqq'; name sotu, a file, a folder or a glob"),
        ("here/bok.txt", r"no corpus, file or folder 'here/bok.txt'; name sotu"),
        ("novel/bok.txt", r"did you mean 'novel/book.txt'\?"),
    ],
)
def test_an_unknown_corpus_suggests_its_neighbour(spec, message, tmp_path, monkeypatch):
    written(tmp_path, {"novel/book.txt": "x"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        corpora.find(spec)


def roles(folder, *names):
    """What the files of these names are, but training text."""
    written(folder, {n: gzip.compress(b"x") if n.endswith("gz") else b"x" * 400 for n in names})
    _, validation, test = validation_set.by_name([folder / name for name in names], folder)
    return {
        str(path.relative_to(folder)): role
        for role, files in (("held out", validation), ("test", test))
        for path in files
    }


def test_files_of_every_kind_are_validation_by_name(tmp_path):
    for suffix, shard, word in product(
        ("", ".txt", ".txt.gz", ".jsonl.gz", ".csv", ".parquet"),
        ("{}", "{}-00000-of-00002", "{}_1", "{}.03"),
        ("valid", "validation", "Val", "dev", "test"),
    ):
        # Without a suffix what follows the point is one.
        train, validation = (
            (shard if suffix else "{}").format(name) + suffix for name in ("train", word)
        )
        assert roles(tmp_path, train, validation) == {validation: "held out"}


BESIDE = {
    "wiki.valid.tokens": "wiki.train.tokens",
    "dev.en.txt": "train.en.txt",
    "data/validation-00000-of-00001.parquet": "data/train-00003-of-00007.parquet",
    "data/val.jsonl": "data/train.jsonl.gz",
    "valid/a.txt": "train/b.txt",
    "en/dev/x/1.txt": "en/train/y.txt",
}
TRAINED = (
    *sorted(set(BESIDE) - {"wiki.valid.tokens"}), "x.val.txt", "my_test.txt",
    "validity.txt", "devices.md", "Developer notes.txt", "latest.txt", "val d'Aosta.txt",
    "test_of_time.txt", "tests.txt", "test.py", "dev.sh", "docs/test.txt", "tests/data/test.jsonl",
)  # fmt: skip


def test_a_name_counts_as_a_whole_and_its_words_and_subfolders_beside_training_text(tmp_path):
    for name, train in BESIDE.items():
        assert roles(tmp_path, "a.md", train, name)[name] == "held out"
    for name in TRAINED:
        assert roles(tmp_path, "a.txt", "b.txt", "train.py", name) == {}
    assert roles(tmp_path, "train.txt", "valid.txt", "test.txt") == {
        "valid.txt": "held out", "test.txt": "test",
    }  # fmt: skip
    assert roles(tmp_path, "test.txt") == {}  # no other text


def test_what_names_decide_is_said_and_kept(tmp_path):
    folder = written(tmp_path / "data", {
        "train.jsonl": '{"text": "a text to train on"}', "more.txt": "more",
        "valid.txt": "held out " * 9, "test.txt": "never seen " * 9,
    })  # fmt: skip
    result = prepare(str(folder))
    assert text_of(result.train) == b"a text to train on"
    assert text_of(result.val) == b"held out " * 9
    assert result.rule == "given"
    assert "validation text, by name: valid.txt" in result.notes
    (note,) = [note for note in result.notes if note.startswith("2 of 4 files skipped: ")]
    assert "test.txt: test text, by its name, never trained on; mlxhog eval RUN" in note
    assert "more.txt: beside train.jsonl, the training text" in note
    written(folder, {"valid.txt": b"\0"})
    with pytest.raises(DataError, match=r"valid\.txt is not UTF-8 text"):
        prepare(str(folder))


def test_of_equal_files_one_is_read_in_any_packing_and_line_ends(tmp_path):
    folder = written(tmp_path / "data", {f"{i:02}.txt": f"document {i}\n" * 20 for i in range(12)})
    written(folder, {"00 copy.md": b"document 5\r\n" * 20})
    written(folder, {"99.txt.gz": gzip.compress(b"document 7\n" * 20)})
    (folder / "linked.txt").symlink_to("03.txt")
    result = prepare(str(folder))
    assert {one.path.name: one.reason for one in result.corpus.skipped} == {
        "05.txt": f"equal to {folder / '00 copy.md'}",
        "99.txt.gz": f"equal to {folder / '07.txt'}",
        "linked.txt": f"equal to {folder / '03.txt'}",
    }
    both = (text_of(result.train) + text_of(result.val)).split(b"\n")
    assert (both.count(b"document 5"), both.count(b"document 7")) == (20, 20)
