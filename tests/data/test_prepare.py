"""Preparing a corpus: done once, whole or not at all, and never trusted when damaged."""

import errno
import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from mlxhog.base import mapped
from mlxhog.base.cache import user_cache_directory
from mlxhog.base.output import say_once
from mlxhog.data import prepare as module
from mlxhog.data import textfiles, tokenizers, tokens, validation_set
from mlxhog.data.prepare import prepare
from mlxhog.errors import DataError, EnvironmentLacks
from tests.data.token_files import text_of, written
from tests.odd_disk import EVERY, odd_disk
from tests.pairs import each_of


@pytest.fixture
def corpus(tmp_path):
    return written(tmp_path / "corpus", {f"{i:02}.txt": f"document {i} " * 20 for i in range(24)})


def made(prepared):
    """When its files were made."""
    return prepared.train.path.stat().st_mtime_ns


def leftovers():
    return list(user_cache_directory().rglob("*.part"))


def test_sotu_has_its_golden_counts():
    sotu = prepare("sotu")
    train, val = sotu.train, sotu.val
    assert (train.n_tokens, train.header["documents"]) == (9_897_458, 214)
    assert (val.n_tokens, val.header["documents"]) == (863_933, 19)
    assert train.n_sequences(256) == 38_661
    batches = validation_set.batches(val, seq_len=256, batch_size=8)
    assert sum(b.n_bytes for b in batches) == 863_914


def test_a_separator_that_no_text_has_is_said(corpus):
    (note,) = prepare(str(corpus), document_separator="---").notes
    assert "'---' does not occur in the text" in note
    assert not prepare(str(corpus), document_separator=None).notes


def test_whatever_makes_the_tokens_names_the_directory_and_the_same_is_made_once(corpus):
    first = prepare(str(corpus))
    os.utime(first.train.path, (0, 0))  # clocks of files are coarse
    again = prepare(str(corpus))
    assert (again.train.path, again.corpus_sha256) == (first.train.path, first.corpus_sha256)
    assert made(again) == 0
    names = [
        prepare(str(corpus), spec, val=rule).train.path
        for spec, rule in (("bytes", "hash"), ("bpe:300", "hash"), ("bytes", "tail"))
    ]
    (corpus / "00.txt").write_text("changed")
    names.append(prepare(str(corpus)).train.path)
    assert names[0] == first.train.path
    assert len(set(names)) == 4
    assert all(name.exists() for name in names)


def test_runs_of_a_process_read_a_text_once_until_one_of_its_files_changes(corpus, monkeypatch):
    reads = Mock(wraps=textfiles.documents)
    monkeypatch.setattr(textfiles, "documents", reads)
    first = prepare(str(corpus))
    prepare(str(corpus))
    assert reads.call_count == 24 * 3  # young files may change and keep their time
    monkeypatch.setattr(module, "SETTLED_S", -60.0)
    prepare(str(corpus))
    reads.reset_mock()
    assert prepare(str(corpus)).notes == first.notes
    assert not reads.call_count
    path = corpus / "00.txt"
    path.write_text(path.read_text().replace("d", "D"))  # of the same size
    os.utime(path, (0, 0))
    assert prepare(str(corpus)).corpus_sha256 != first.corpus_sha256
    for different in ({"val": "tail"}, {"loss_on": "all"}, {"document_separator": "3"}):
        reads.reset_mock()
        prepare(str(corpus), **different)
        assert reads.call_count >= 24


def test_validation_documents_are_in_no_training_file(corpus):
    prepared = prepare(str(corpus))
    assert prepared.rule == "hash 8/96 of 65536"
    documents = {one.read_bytes() for one in corpus.iterdir()}
    val = {one for one in documents if one in text_of(prepared.val)}
    train = {one for one in documents if one in text_of(prepared.train)}
    assert val | train == documents
    assert val
    assert not val & train
    files = [f"{split}.{s}" for split in ("train", "val") for s in ("bin", "idx", "len", "json")]
    assert {path.name for path in prepared.train.path.parent.iterdir()} == {
        "prepared.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *files,
    }  # fmt: skip


def test_bpe_learns_from_training_text_only_and_travels_with_the_tokens(corpus):
    first, known = text_of((of_bytes := prepare(str(corpus))).val), of_bytes.text
    validation = next(one for one in corpus.iterdir() if one.read_bytes() in first)
    validation.write_text(validation.read_text() + "zyxzyx" * 40)
    prepared = prepare(str(corpus), "bpe:300", known=known)
    assert len(prepared.tokenizer.encode(b"zyxzyx")) == 6
    again = prepare(str(corpus), "bpe:300", known=known)
    assert again.tokenizer.sha256 == prepared.tokenizer.sha256
    assert prepared.train.header["tokenizer_sha256"] == prepared.tokenizer.sha256


@pytest.mark.parametrize("name", ["train.bin", "val.json", "tokenizer.json", "prepared.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_cache_is_written_anew(corpus, name, damage):
    first = prepare(str(corpus))
    victim = first.train.path.parent / name
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-3])
    for path in victim.parent.iterdir():
        os.utime(path, (0, 0))
    second = prepare(str(corpus))
    assert made(second) > 0
    second.check_length(16)
    assert f"the stored tokens of {corpus} were damaged and are made anew" in second.notes


@pytest.mark.parametrize(
    ("n_bytes", "message"),
    [
        (3, "no validation text"),
        (20, r"\d+ training tokens, and one sequence needs 65"),
        (500, r"\d+ validation tokens, and one sequence needs 65"),
    ],
)
def test_a_corpus_shorter_than_a_sequence_is_refused_at_the_start(tmp_path, n_bytes, message):
    (tmp_path / "short.txt").write_text("x" * n_bytes)
    with pytest.raises(DataError, match=f"too short: {message}"):
        prepare(str(tmp_path / "short.txt")).check_length(64)
    assert not leftovers()


def test_a_text_that_changes_or_a_disk_that_fills_up_leaves_nothing_behind(corpus, monkeypatch):
    def build(spec, texts, **how):
        (corpus / "00.txt").write_text("changed")
        return tokenizers.ByteTokenizer()

    with monkeypatch.context() as patch:
        patch.setattr(tokenizers, "build", build)
        with pytest.raises(DataError, match="corpus changed while it was read"):
            prepare(str(corpus))
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(tokens.TokenWriter, "add", Mock(side_effect=full))
        with pytest.raises(EnvironmentLacks, match="the disk became full while preparing"):
            prepare(str(corpus))
    assert not leftovers()
    first = prepare(str(corpus))
    part = first.train.path.parent.with_name(first.train.path.parent.name + ".part")
    first.train.path.parent.rename(part)  # as a killed process leaves it
    (part / "train.bin").write_bytes(b"half")
    prepare(str(corpus)).check_length(16)
    assert not leftovers()


def test_who_prepares_at_once_ends_with_one_good_copy(corpus):
    with ThreadPoolExecutor() as pool:  # the lock is between open files, so between threads, too
        both = [pool.submit(prepare, str(corpus)) for _ in range(2)]
        written = {made(one.result()) for one in as_completed(both)}
    assert len(written) == 1
    prepared = both[1].result()
    for file in (prepared.train, prepared.val):
        file.check_known(file.tokens)


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"XDG_CACHE_HOME": "/cache"}, "darwin", "/cache/mlxhog"),
        ({}, "linux", "HOME/.cache/mlxhog"),
        ({}, "darwin", "HOME/Library/Caches/mlxhog"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    environment, platform, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(os, "environ", environment | {"HOME": str(tmp_path)})
    monkeypatch.setattr("sys.platform", platform)
    assert user_cache_directory() == Path(expected.replace("HOME", str(tmp_path)))


@pytest.mark.parametrize("home", [None, "nowhere"])
def test_a_user_without_a_home_has_a_private_cache_and_is_told(home, monkeypatch, tmp_path, capsys):
    if home is None:  # as of a user id without an entry
        monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("no home")))
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path / "nowhere")})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    say_once.cache_clear()
    cache = user_cache_directory()
    assert user_cache_directory() == cache
    assert cache.parent == tmp_path / f"mlxhog-{os.geteuid()}"
    assert stat.S_IMODE(cache.parent.stat().st_mode) == 0o700
    (line,) = capsys.readouterr().err.splitlines()
    assert f"so the cache is {cache}; set HOME or XDG_CACHE_HOME" in line


@pytest.mark.parametrize("how", ["link", "file", "open to others"])
def test_a_temporary_cache_that_others_could_have_made_is_refused(how, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path / "nowhere")})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"mlxhog-{os.geteuid()}"
    if how == "link":
        folder.symlink_to(tmp_path)
    elif how == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(EnvironmentLacks, match="is not trusted.* set XDG_CACHE_HOME"):
        user_cache_directory()


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


def test_the_cache_is_its_owners_alone_and_tokens_that_others_could_write_are_made_anew(corpus):
    cache, entry = user_cache_directory(), prepare(str(corpus)).train.path.parent
    assert modes(entry) == {0o700, 0o600}
    for path in (cache, entry, *entry.iterdir()):  # as an earlier version made them
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.utime(entry / "train.bin", (0, 0))
    assert made(prepare(str(corpus))) == 0
    assert (modes(entry), stat.S_IMODE(cache.stat().st_mode)) == ({0o700, 0o600}, 0o700)
    for victim, mode in ((entry / "val.bin", 0o664), (entry, 0o777)):
        os.utime(entry / "train.bin", (0, 0))
        victim.chmod(mode)
        again = prepare(str(corpus))
        assert made(again) > 0
        assert any("could be written by other users and are made anew" in n for n in again.notes)
        assert modes(entry) == {0o700, 0o600}


def test_a_cache_of_another_user_is_refused(corpus, monkeypatch):
    prepare(str(corpus))
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(EnvironmentLacks, match=r"mlxhog is not trusted: it belongs to .*uid"):
        prepare(str(corpus))


def test_a_new_text_takes_the_place_of_those_unused_the_longest_but_not_of_one_in_use(
    tmp_path, monkeypatch
):
    def text(name):
        files = {f"{k}.txt": f"{name} adds " * 99 for k in range(12)}
        return prepare(str(written(tmp_path / name, files)))

    in_use, entries = text("a"), [text(name).train.path.parent for name in "bcd"]
    for k, path in enumerate((in_use.train.path.parent, *entries)):
        os.utime(path / "prepared.json", (k, k))
    text("b")  # used again
    n_bytes = sum(path.stat().st_size for path in entries[0].iterdir())
    monkeypatch.setattr(module, "MAX_BYTES", 3.5 * n_bytes)
    monkeypatch.setattr(module, "MAX_SHARE", 0)
    new = text("e")
    assert [path.exists() for path in entries] == [True, False, False]
    assert in_use.train.path.exists()
    assert any("removed the stored tokens of 2 texts, unused since" in one for one in new.notes)
    assert not any("removed" in one for one in text("b").notes)
    monkeypatch.setattr(module, "MAX_BYTES", 10e9)
    monkeypatch.setattr(module, "MAX_TEXTS", 2)
    del new
    text("f")
    left = module.stored_texts(user_cache_directory())
    assert sorted(one.source[-1] for one in left) == ["a", "f"]


def test_a_cache_that_cannot_be_written_says_how_to_move_it(corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentLacks, match="set XDG_CACHE_HOME"):
        prepare(str(corpus))


@each_of("kind, number", [*EVERY, ("nothing", 0)])
def test_a_cache_on_any_disk_holds_tokens_and_the_user_is_told_what_it_lacks(
    tmp_path, monkeypatch, kind, number
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = written(tmp_path / "corpus", {f"{i}.txt": f"document {i} " * 20 for i in range(24)})
    with odd_disk(tmp_path / "cache", kind, number) if number else nullcontext():
        first, again = prepare(str(text)), prepare(str(text))
    assert again.train.batch(np.array([0]), 16).x.shape == (1, 16)
    lacks = kind in ("locks", "folder_fsync", "shared_maps")
    for prepared in (first, again):
        assert sum("the disk of" in note for note in prepared.notes) == lacks


def test_a_cache_that_cannot_be_used_is_named_with_the_way_out(corpus, monkeypatch):
    way_out = "set XDG_CACHE_HOME to a folder on another disk"
    for number in (errno.ENOSYS, errno.EXDEV, errno.EINVAL):  # folders cannot be renamed
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", Mock(side_effect=OSError(number, os.strerror(number))))
            with pytest.raises(EnvironmentLacks, match=f"cannot be written: .*{way_out}"):
                prepare(str(corpus))
    with monkeypatch.context() as patch:
        patch.setattr(
            mapped, "map_open", Mock(side_effect=OSError(errno.EIO, "Input/output error"))
        )
        with pytest.raises(EnvironmentLacks, match=f"what was written cannot be read; {way_out}"):
            prepare(str(corpus))
