"""Tokenizers lose no byte, count them, and describe themselves to other programs."""

import json
import sys

import pytest
import tokenizers as package
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data import bpe, tokenizers
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import DataError, EnvironmentLacks
from tests.pairs import each_of, max_examples

TEXT = "The state of the Union is “strong”, 1790\n and naïve. <|bos|> Ünïon\n".encode()


@pytest.fixture(scope="module")
def trained():
    return bpe.train_bpe([TEXT * 3, b"plain words of the state"], 300)


def save(tokenizer, directory):
    directory.mkdir(exist_ok=True)
    for name, content in tokenizer.files().items():
        (directory / name).write_bytes(content)
    return directory


@max_examples(100)
@given(st.text(max_size=100))
def test_bpe_text_comes_back_exactly(trained, text):
    ids = trained.encode(text.encode())
    assert trained.decode(ids) == text.encode()
    assert trained.byte_lengths()[ids].sum() == len(text.encode())


def test_the_byte_tokenizer_has_the_published_ids():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.n_ids, tokenizer.bos) == (320, 257, 256)
    assert tokenizer.encode(b"\x00a\xff").tolist() == [0, 97, 255]
    assert tokenizer.decode([104, 256, 105, 319]) == b"hi"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(kind, trained, tmp_path):
    tokenizer = ByteTokenizer() if kind == "bytes" else trained
    loaded = tokenizers.load(save(tokenizer, tmp_path))
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


def test_bpe_training_is_repeatable_and_learns_from_the_given_text():
    first, second = (bpe.train_bpe([TEXT * 20], 270) for _ in range(2))
    assert first.sha256 == second.sha256
    assert (first.n_ids, first.vocab_size, first.bos) == (270, 320, 0)
    assert len(first.encode(TEXT)) < len(TEXT)


def test_the_start_token_is_read_from_the_files_and_never_guessed(trained, tmp_path):
    config = save(trained, tmp_path) / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "the"}}))
    vocabulary = json.loads(trained.description)["model"]["vocab"]
    assert tokenizers.load(tmp_path).bos == vocabulary["the"]
    config.write_text('{"bos_token": "<nowhere>"}')
    with pytest.raises(DataError, match="'<nowhere>' is not in the vocabulary"):
        tokenizers.load(tmp_path)
    config.unlink()
    with pytest.raises(DataError, match="beside it names a bos_token"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_a_text_is_never_cut_or_padded_whatever_the_file_says(trained, tmp_path):
    path = str(save(trained, tmp_path) / "tokenizer.json")
    batches = package.Tokenizer.from_file(path)
    batches.enable_truncation(max_length=4)
    batches.enable_padding(length=64, pad_id=0, pad_token="<|bos|>")
    batches.save(path)
    loaded = tokenizers.load(tmp_path)
    for text in (TEXT, b"a"):
        assert loaded.encode(text).tolist() == trained.encode(text).tolist()


WORDS = package.Tokenizer(package.models.WordLevel({"a b": 0, "<s>": 1}, unk_token="<s>"))


@each_of(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "not a tokenizer.json"),
        (WORDS.to_str(), "token 'a b' is not byte-level"),
    ],
)
def test_a_tokenizer_file_that_is_damaged_or_not_byte_level_is_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(DataError, match=rf"tokenizer.json.*{message}"):
        tokenizers.load(tmp_path)


def test_a_tokenizer_file_on_which_the_package_panics_is_named(trained, tmp_path, capfd):
    path = save(trained, tmp_path) / "tokenizer.json"
    description = json.loads(path.read_bytes())
    description["model"]["continuing_subword_prefix"] = "x" * 100  # longer than any token
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json: range end"):
        tokenizers.load(tmp_path)
    assert "panicked" in capfd.readouterr().err  # what Rust says goes to the terminal


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


def test_bpe_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentLacks, match="tokenizers: python -m pip install tokenizers"):
        tokenizers.build("bpe:300", list)
