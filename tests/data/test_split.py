"""The validation split: by content, so that more text moves none of it."""

import numpy as np
import pytest

from mlxhog.data import split
from mlxhog.data.prepare import prepare
from mlxhog.data.records import Example
from mlxhog.data.split import KnownText, Scan, choose
from tests.data.token_files import text_of, written
from tests.pairs import each_of

NEITHER = {"given": False, "predefined": False}


def scanned(documents, **options):
    scan = Scan(**options)
    for document in documents:
        scan.add(document)
    return scan


def sides(documents, val="hash", known=None, **options):
    """Which of the documents, all of them short, are held out."""
    scan = scanned(documents, **options)
    chosen = choose(val, scan, given=False, predefined=False, known=known)
    assert len(chosen.validation) == len(documents)
    return dict(zip(documents, chosen.validation.tolist(), strict=True))


def in_a_file(rows):
    scan = scanned(rows)
    scan.files.append(("/home/a/rows.jsonl", scan.n_documents))
    return scan


def known_file(rows):
    return KnownText.of(scan := in_a_file(rows), choose("hash", scan, known=None, **NEITHER), None)


def notes(n, seed=0):
    rng = np.random.default_rng(seed)
    return [b"%d " % k * int(rng.integers(20, 200)) for k in rng.permutation(10**6)[:n].tolist()]


@each_of("n", [24, 100, 300, 1000])
def test_a_new_document_moves_no_other_and_the_share_is_a_twelfth(n):
    documents, moved = notes(n), 0
    before = sides(documents)
    for new in notes(20, seed=1):
        after = sides([new, *documents])
        moved += any(after[one] != before[one] for one in documents)
    assert moved <= 1  # if another threshold is better
    share = sum(map(len, (one for one in documents if before[one]))) / sum(map(len, documents))
    assert abs(share - 1 / 12) <= (0.01 if n >= 300 else 1 / 10)
    assert any(before.values())
    assert sides(documents[::-1]) == before


UNEQUAL = {
    "a novel is most of the text": [b"note %d " % i * 100 for i in range(20)]
    + [b"novel %d " % i * 9 for i in range(10**4)],
    "a single document": [b" ".join(b"%d" % i for i in range(9000))],
    "a novel is longer than a part": [b"".join(b"%d\n" % i for i in range(400_000))],
    "a line": [b"0123456789" * 20],
}


@each_of("why", UNEQUAL)
def test_of_unequal_documents_parts_are_validation_and_no_byte_is_lost(why, tmp_path):
    documents = UNEQUAL[why] if len(UNEQUAL[why]) < 30 else [b"".join(UNEQUAL[why])]
    folder = written(tmp_path, {f"{k}.md": text for k, text in enumerate(documents)})
    result = prepare(str(folder))
    val, train = (text_of(file) for file in (result.val, result.train))
    assert len(val) + len(train) == sum(map(len, documents))
    assert 0 < len(val) <= len(train) / 4


def test_more_text_at_the_end_of_a_long_document_moves_no_part_before():
    text = "".join(f"line {k} é\n" for k in range(40_000)).encode()
    before, after = split.parts(text, 4096), split.parts(text + b"more\n" * 9000, 4096)
    assert b"".join(before) == text
    assert after[: len(before) - 1] == before[:-1]
    for part in before:
        part.decode()


def test_examples_stay_whole_and_equal_documents_have_one_side():
    documents = [Example(b"ask %d " % i, b"answer " * (90000 if i == 3 else 10)) for i in range(24)]
    assert 1 <= sum(sides(documents).values()) <= 6
    scan = scanned([b"equal " * 9] * 9 + notes(30) * 2)
    validation = choose("hash", scan, given=False, predefined=False, known=None).validation
    assert len(set(validation[:9].tolist())) == 1
    assert validation[9:39].tolist() == validation[39:].tolist()


def test_known_text_keeps_its_side_when_edited_and_what_was_trained_on_is_not_validation(tmp_path):
    documents = {f"n{k:02}.md": text for k, text in enumerate(notes(60))}
    folder = written(tmp_path / "notes", documents)
    first = prepare(str(folder))
    first.text.write(tmp_path)
    known = KnownText.read(tmp_path)
    val = {name for name, text in documents.items() if text in text_of(first.val)}
    new = {f"a{k}.md": text for k, text in enumerate(notes(90, seed=5))}
    edited = {name: b"edited " + text for name, text in documents.items()}
    written(folder, new | edited)
    second = prepare(str(folder), known=known)
    assert {name for name, text in edited.items() if text in text_of(second.val)} == val
    assert any(text in text_of(second.val) for text in new.values())
    assert second.added["documents"] == 150
    third = prepare(str(folder), known=second.text)
    assert (third.added, third.text.others) == (None, second.text.others)
    assert known.sides().items() <= third.text.sides().items()  # also of text that is gone


@each_of("last", [True, False])
@each_of("compared", [100, 5000])
def test_a_file_that_is_edited_and_grows_or_is_replaced_has_the_usual_share_of_validation_text(
    last, compared, monkeypatch
):
    monkeypatch.setattr(split, "_MAX_COMPARED", compared)
    own = sides(notes(400))
    rows, new = sorted(own, key=lambda one: own[one] == last), notes(1600, seed=1)
    known = known_file(rows)
    for after, first in (([b"edited", *rows[1:], *new], len(rows)), (new, 0)):
        chosen = choose("hash", scan := in_a_file(after), known=known, resumes=True, **NEITHER)
        assert 1 / 18 < chosen.validation[first:].mean() < 1 / 8
        if first:
            assert chosen.validation[:first].tolist() == [own[one] for one in rows]
            assert known.kept(scan) == 1


@each_of("compared", [100, 5000])
def test_rows_that_move_in_a_file_are_not_edited_and_keep_their_side(compared, monkeypatch):
    monkeypatch.setattr(split, "_MAX_COMPARED", compared)
    own, new = sides(rows := notes(400)), notes(200, seed=1)
    known = known_file(rows)
    for after, kept in (
        (rows[::-1], 1),
        (sorted(rows), 1),
        ([*new, *rows], 1),
        ([new[0], *rows, new[1]], 1),
        (rows[1:], 399 / 400),
        ([*rows[200:], *new], 1 / 2),
    ):
        chosen = choose("hash", scan := in_a_file(after), known=known, resumes=True, **NEITHER)
        assert (chosen.seen, known.kept(scan)) == (0, kept)
        now = dict(zip(after, chosen.validation.tolist(), strict=True))
        assert {one: side for one, side in now.items() if one in own}.items() <= own.items()


def test_edited_text_keeps_its_side_from_another_folder_and_when_it_was_moved(
    tmp_path, monkeypatch
):
    documents = {f"a/n{k:02}.md": text for k, text in enumerate(notes(60))}
    edited = {name: b"edited " + text for name, text in documents.items()}
    written(tmp_path / "text", documents)
    monkeypatch.chdir(tmp_path)
    first = prepare("text")
    written(tmp_path / "text", edited)
    written(tmp_path / "moved", edited)
    monkeypatch.chdir("/")
    for folder in ("text", "moved"):
        now = prepare(str(tmp_path / folder), known=first.text, resumes=True)
        assert now.kept == 1
        assert np.array_equal(now.text.split.validation, first.text.split.validation)


def test_a_note_says_how_much_of_a_score_is_of_text_that_the_weights_have_seen(tmp_path):
    documents = {f"n{k:02}.md": text for k, text in enumerate(notes(30))}
    first = prepare(str(written(tmp_path / "notes", documents)))
    train = [text for text in documents.values() if text in text_of(first.train)]
    own = written(tmp_path / "own", {"train.txt": b"other", "valid.txt": train[0]})
    second = prepare(str(own), known=first.text)
    assert any(note.startswith("100.0% of the validation text") for note in second.notes)
    assert not any("were trained on" in note for note in prepare(str(own)).notes)


@each_of("n", [1, 8, 30])
def test_of_much_new_text_a_twelfth_is_validation_whatever_a_small_text_needed(n, tmp_path):
    first = prepare(str(written(tmp_path, {f"n{k}.md": one for k, one in enumerate(notes(n))})))
    written(tmp_path, {f"m{k}.md": one for k, one in enumerate(notes(600, seed=9))})
    second = prepare(str(tmp_path), known=first.text, resumes=True)
    assert second.rule == first.rule
    assert 1 / 18 < second.val.header["bytes"] / second.n_bytes < 1 / 8


def test_a_copy_of_a_known_document_is_new_text_and_the_others_keep_their_turn():
    before = [b"one", b"two", b"three", b"two"]
    known = KnownText.of(scan := scanned(before), choose("hash", scan, known=None, **NEITHER), None)

    def turns(*documents):
        now = scanned(documents)
        return known.turns(np.array(now.digests, np.uint64)).tolist()

    assert turns(*before, b"four", b"one") == [0, 0, 0, 0, 1, 1]
    assert turns(b"four", b"three", *before, b"two") == [1, 1, 0, 0, 0, 0, 1]
    assert turns(b"one", b"three", b"two", b"two", b"four") == [0] * 5  # moved, so read anew


def test_edited_text_with_the_sides_of_its_old_one_is_another_split_than_by_its_content(tmp_path):
    documents = {f"n{k:02}.md": text for k, text in enumerate(notes(60))}
    folder = written(tmp_path, documents)
    first = prepare(str(folder))
    assert first.text.name == first.rule
    written(folder, {name: b"edited " + text for name, text in documents.items()})
    resumed, fresh = prepare(str(folder), known=first.text), prepare(str(folder))
    assert resumed.rule == fresh.rule == fresh.text.name
    assert text_of(resumed.val) != text_of(fresh.val)
    assert resumed.text.name != fresh.text.name


def test_a_damaged_list_of_known_text_is_refused_and_none_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "MAX_FILE_BYTES", 1 << 20)
    assert KnownText.read(tmp_path) is None
    about = np.frombuffer(b'["hash", 8, 256, []]', np.uint8)
    arrays = {
        "about": about, "digests": np.ones(2, np.uint64), "validation": np.ones(2, bool),
        "turn": np.zeros(2, np.uint8), "others": np.ones(0, np.uint64), "sides": about[:0],
    }  # fmt: skip
    bomb = {"others": np.zeros(split.MAX_FILE_BYTES // 8 + 1, np.uint64)}
    for change in ({}, {"turn": np.ones(2)}, {"turn": np.zeros(3, np.uint8)}, bomb):
        np.savez_compressed(tmp_path / split.FILE, **{**arrays, **change})
        if not change:
            assert len(KnownText.read(tmp_path).digests) == 2
            (tmp_path / split.FILE).write_bytes(b"PK damaged")
        with pytest.raises(split.DataError, match=r"documents\.npz is damaged"):
            KnownText.read(tmp_path)
