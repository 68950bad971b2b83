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
from tests.pairs import max_examples

TEXT = "The state of the Union is “strong”, 1790\n and naïve. <|bos|> Ünïon\n".encode()


@pytest.fixture(scope="module")
def trained():
    return bpe.train_bpe([TEXT * 3, b"plain words of the state"], 300)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, trained):
    return ByteTokenizer() if request.param == "bytes" else trained


def save(tokenizer, directory):
    directory.mkdir(exist_ok=True)
    for name, content in tokenizer.files().items():
        (directory / name).write_bytes(content)
    return directory


def test_the_byte_tokenizer_has_the_published_ids():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.n_ids, tokenizer.bos) == (320, 257, 256)
    assert tokenizer.encode(b"\x00a\xff").tolist() == [0, 97, 255]
    assert tokenizer.decode([104, 256, 105, 319]) == b"hi"


@max_examples(100)
@given(st.text(max_size=100))
def test_bpe_text_comes_back_exactly(trained, text):
    ids = trained.encode(text.encode())
    assert trained.decode(ids) == text.encode()
    assert trained.byte_lengths()[ids].sum() == len(text.encode())


def test_text_that_spells_the_separator_is_still_text(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert tokenizer.bos not in ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.byte_lengths()[tokenizer.bos] == 0


def test_a_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    loaded = tokenizers.load(save(tokenizer, tmp_path))
    assert type(loaded) is type(tokenizer)
    assert (loaded.sha256, loaded.bos) == (tokenizer.sha256, tokenizer.bos)
    assert loaded.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_transformers_reads_our_tokenizer_files(tokenizer, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(save(tokenizer, tmp_path))
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
    save(trained, tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "the"}}))
    assert (
        tokenizers.load(tmp_path).bos
        == json.loads(trained.files()["tokenizer.json"])["model"]["vocab"]["the"]
    )
    config.write_text('{"bos_token": "<nowhere>"}')
    with pytest.raises(DataError, match="'<nowhere>' is not in the vocabulary"):
        tokenizers.load(tmp_path)
    config.unlink()
    with pytest.raises(DataError, match="beside it names a bos_token"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_a_text_is_never_cut_or_padded_whatever_the_file_says(trained, tmp_path):
    save(trained, tmp_path)
    batches = package.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    batches.enable_truncation(max_length=4)
    batches.enable_padding(length=64, pad_id=0, pad_token="<|bos|>")
    batches.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizers.load(tmp_path)
    for text in (TEXT, b"a"):
        assert loaded.encode(text).tolist() == trained.encode(text).tolist()


def test_a_vocabulary_that_is_not_byte_level_is_refused(tmp_path):
    words = package.Tokenizer(package.models.WordLevel({"a b": 0, "<s>": 1}, unk_token="<s>"))
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(DataError, match="token 'a b' is not byte-level"):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not JSON"), (b"[]", "expected a JSON object"), (b"{}", "not a tokenizer.json")],
)
def test_a_damaged_tokenizer_file_is_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(DataError, match=rf"tokenizer.json.*{message}"):
        tokenizers.load(tmp_path)


def test_a_tokenizer_file_on_which_the_package_panics_is_named(trained, tmp_path, capfd):
    save(trained, tmp_path)
    path = tmp_path / "tokenizer.json"
    description = json.loads(path.read_bytes())
    description["model"]["continuing_subword_prefix"] = "x" * 100  # longer than any token
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer\.json: range end"):
        tokenizers.load(tmp_path)
    assert "panicked" in capfd.readouterr().err  # what Rust says goes to the terminal


def no_text():
    return iter([])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing/here.json", "no tokenizer '.*', and no such file; say bytes, bpe:N"),
        ("bpe:2k", "expected bpe: and a number, such as bpe:4096"),
        ("bpe:100", "needs at least 257 ids"),
    ],
)
def test_an_unknown_tokenizer_says_what_is_known(spec, message):
    with pytest.raises(DataError, match=message):
        tokenizers.build(spec, no_text)


def test_bpe_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentLacks, match="tokenizers: python -m pip install tokenizers"):
        tokenizers.build("bpe:300", no_text)
