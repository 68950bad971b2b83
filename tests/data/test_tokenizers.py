"""Tokenizers lose no byte, count them, describe themselves to other programs, and fit the text."""

import hashlib
import json

import numpy as np
import pytest
import tokenizers as package
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data import tokenizers, validation_set
from mlxhog.data.prepare import prepare
from mlxhog.data.sotu import SOTU_SHA256, documents
from mlxhog.data.tokenizers import BOS_TOKEN, BpeTokenizer, ByteTokenizer, choose, train_bpe
from mlxhog.errors import DataError
from tests.data.token_files import token_file, written
from tests.pairs import each_of, max_examples
from tools import sotu

TEXT = "The state of the Union is “strong”, 1790\n and naïve. <|bos|> Ünïon\n".encode()


@pytest.fixture(scope="module")
def trained():
    return train_bpe([TEXT * 3, b"plain words of the state"], 300)


@max_examples(100)
@given(st.text(max_size=100))
def test_bpe_text_comes_back_exactly(trained, text):
    ids = trained.encode(text.encode())
    assert trained.decode(ids) == text.encode()
    assert trained.byte_lengths()[ids].sum() == len(text.encode())
    parallel, _ = trained.encode_all([text.encode(), b"x"])
    assert parallel.tolist() == ids.tolist()


def test_the_byte_tokenizer_has_the_published_ids():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.n_ids, tokenizer.bos) == (320, 257, 256)
    assert tokenizer.encode(b"\x00a\xff").tolist() == [0, 97, 255]
    assert tokenizer.decode([104, 256, 105, 319]) == b"hi"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(kind, trained, tmp_path):
    tokenizer = ByteTokenizer() if kind == "bytes" else trained
    loaded = tokenizers.load(written(tmp_path, tokenizer.files()))
    assert type(loaded) is type(tokenizer)
    assert (loaded.sha256, loaded.bos) == (tokenizer.sha256, tokenizer.bos)
    ids = loaded.encode(TEXT)  # spells the separator, which is still text
    assert ids.tolist() == tokenizer.encode(TEXT).tolist()
    assert tokenizer.bos not in ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.byte_lengths()[tokenizer.bos] == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = TEXT.replace(b"<|bos|>", b"")
    ids = theirs(text.decode())["input_ids"]
    assert ids == [tokenizer.bos, *tokenizer.encode(text).tolist()]
    assert theirs.decode(ids, skip_special_tokens=True).encode() == text


def test_the_start_token_is_read_from_the_files_and_never_guessed(trained, tmp_path):
    config = written(tmp_path, trained.files()) / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "the"}}))
    vocabulary = json.loads(trained.description)["model"]["vocab"]
    assert tokenizers.load(tmp_path).bos == vocabulary["the"]
    for name in ("<nowhere>", "\\ud800"):
        config.write_text(f'{{"bos_token": "{name}"}}')
        with pytest.raises(DataError, match="is not in the vocabulary"):
            tokenizers.load(tmp_path)
    config.unlink()
    with pytest.raises(DataError, match="beside it names a bos_token"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_a_text_is_never_cut_or_padded_whatever_the_file_says(trained, tmp_path):
    path = str(written(tmp_path, trained.files()) / "tokenizer.json")
    batches = package.Tokenizer.from_file(path)
    batches.enable_truncation(max_length=4)
    batches.enable_padding(length=64, pad_id=0, pad_token="<|bos|>")
    batches.save(path)
    loaded = tokenizers.load(tmp_path)
    for text in (TEXT, b"a"):
        assert loaded.encode(text).tolist() == trained.encode(text).tolist()


WORDS = package.Tokenizer(package.models.WordLevel({"a b": 0, "<s>": 1}, unk_token="<s>"))
PANIC = json.loads(ByteTokenizer().description)  # a prefix longer than any token: a panic in Rust
PANIC["model"]["continuing_subword_prefix"] = "x" * 100
PANIC["model"]["merges"] = [["a", "b"]]
BILLIONS = json.loads(ByteTokenizer().description)
BILLIONS["model"]["vocab"]["aa"] = 10**9


@each_of(
    ("content", "message"),
    [
        ("{", "is not a tokenizer.json"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("[]", "is not a tokenizer.json"),
        ("{}", "not a tokenizer.json"),
        (WORDS.to_str(), "token 'a b' is not byte-level"),
        (json.dumps(PANIC), "its tokens have 'xxx.*', which no text contains"),
        (json.dumps(BILLIONS).replace(BOS_TOKEN, "<s>"), "the largest id is 1000000000"),
    ],
)
def test_a_tokenizer_file_that_is_damaged_or_not_byte_level_is_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(DataError, match=rf"tokenizer.json.*{message}"):
        tokenizers.load(tmp_path)


@each_of(
    ("spec", "message"),
    [
        ("nothing/here.json", "no tokenizer '.*', and no such file; say bytes, bpe:N"),
        ("bpe:2k", "expected bpe: and a number, such as bpe:4096"),
        ("bpe:100", "needs at least 257 ids"),
    ],
)
def test_an_unknown_tokenizer_says_what_is_known(spec, message):
    with pytest.raises(DataError, match=message):
        tokenizers.build(spec, list)


ODD = "The naïve cafe\u0301: ﬁne, 한국어 İstanbul, and a tab\t.\n\n"


def changing(**fields):
    """A tokenizer of bytes and some pairs of them, with further steps."""
    plain = train_bpe([ODD.encode() * 3, ODD.lower().encode() * 3], 300)
    description = json.loads(plain.description)
    return BpeTokenizer(json.dumps(description | fields).encode(), plain.bos_token, "test")


@pytest.mark.parametrize("fields", [{"normalizer": {"type": "NFD"}}, {}], ids=["NFD", "plain"])
def test_every_count_of_bytes_is_of_the_original_text(tmp_path, fields):
    documents = [b"plain text", *["é한 ".encode() * (5 + i) for i in range(20)], b"caf\xe9 again"]
    file = token_file(tmp_path, documents, changing(**fields))
    n_bytes = sum(map(len, documents))
    assert (file.header["bytes"], file.header["changed"]) == (n_bytes, 21 if fields else 1)
    batches = list(validation_set.batches(file, seq_len=16, batch_size=4))
    assert sum(batch.n_bytes for batch in batches) == pytest.approx(n_bytes, abs=len(batches))
    n = file.n_sequences(16)
    lengths = file.byte_lengths[file.tokens]
    share = lengths[1 : 16 * n + 1].sum() / lengths.sum()
    assert file.batch(np.arange(n), 16).n_bytes == round(share * n_bytes)
    part = validation_set.subset(file, 160)
    assert part.text_bytes(part.tokens) == part.header["bytes"] < 200


def test_a_tokenizer_that_changes_the_text_is_noted(tmp_path):
    texts = {f"{i:02}.txt": f"{('the', 'The')[i % 2]} text {i}\n" * 9 for i in range(12)}
    written(tmp_path, changing(normalizer={"type": "Lowercase"}).files())
    spec = str(tmp_path / "tokenizer.json")
    prepared = prepare(str(written(tmp_path / "text", texts)), spec)
    assert "the tokenizer changes the text of 6 of 12 documents" in prepared.notes[0]
    changed = [file.header["changed"] for file in (prepared.train, prepared.val)]
    assert sum(changed) == 6


MIB = 1 << 20


@each_of(
    ("text", "spec", "reason"),
    [
        ({}, "bpe:8192", "trained on 4.2 MB of text for width 128"),
        ({"n_bytes": 2_399_999}, "bpe:4096", "trained on"),
        ({"width": 63}, "bpe:2048", "for width 63"),
        ({"n_bytes": 100 * MIB, "width": 256}, "bpe:16384", "for width 256"),
        ({"n_bytes": 10_000 * MIB, "width": 4096}, "bpe:32768", "for width 4096"),
        ({"n_bytes": 640_000}, "bpe:1024", "640 kB"),
        ({"n_bytes": 320_000}, "bpe:512", "320 kB"),
        ({"n_bytes": 319_999}, "bytes", "320 kB of text is too little"),
        ({"width": 7}, "bytes", "width 7 is too narrow"),
        ({"sha256": SOTU_SHA256}, "sotu", ""),
        ({"sha256": SOTU_SHA256, "rule": "tail"}, "bpe:8192", "trained"),
    ],
)
def test_the_choice_is_a_function_of_text_and_width_with_its_reason(text, spec, reason):
    like = {"n_bytes": 4 * MIB, "width": 128, "sha256": "", "rule": "predefined"}
    chosen, note = choose(**like | text)
    assert chosen == spec
    assert reason in (note or "")
    assert spec == "sotu" or (note or "").startswith(f"tokenizer {spec}")


@pytest.mark.slow
def test_the_shipped_tokenizer_is_learnt_from_the_shipped_training_documents_alone():
    assert hashlib.sha256(b"\0".join(documents())).hexdigest() == SOTU_SHA256
    tokenizer = tokenizers.shipped()
    assert tokenizer.sha256 == tokenizers.SHIPPED_SHA256
    assert (tokenizer.n_ids, tokenizer.vocab_size, tokenizer.bos) == (8192, 8192, 0)
    texts = list(sotu.training_texts())
    assert (len(texts), sum(map(len, texts))) == (214, 9_897_244)
    assert hashlib.sha256(sotu.learn()).hexdigest() == tokenizers.SHIPPED_SHA256
