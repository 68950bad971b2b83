"""A tokenizer.json of a stranger neither fills the memory nor keeps a command from its end."""

import json
import pickle

import pytest

from mlxhog.data import foreign_tokenizers
from mlxhog.data.foreign_tokenizers import PATTERNS, accepted
from mlxhog.data.tokenizers import BpeTokenizer, ByteTokenizer, shipped
from mlxhog.errors import DataError
from tests.pairs import each_of
from tests.threads import begin, join, wait_until

PLAIN = json.loads(ByteTokenizer.description)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
BACKTRACKS, ENDLESS = "(?:a+a+)+a*b", "a*a*a*b"
FOR_MINUTES = b" ".join([b"a" * 370] * 200) + b"b"


def loaded(model=(), **fields):
    """A tokenizer of bytes with other fields of its file and of its model."""
    description = PLAIN | fields | {"model": PLAIN["model"] | dict(model)}
    return BpeTokenizer(json.dumps(description).encode(), "<|bos|>", "x/tokenizer.json")


def sequence(*components):
    return {"type": "Sequence", "normalizers": list(components)}


def split_by(pattern):
    parts = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
              "invert": False}, BYTES]  # fmt: skip
    return {"type": "Sequence", "pretokenizers": parts}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


NFD = {"type": "NFD"}
LONG = [{"id": 257 + k, "content": f"{k:0100}", "special": False} for k in range(11_000)]
BEYOND = {
    "a longer text for each": (
        {"normalizer": replace({"String": "e"}, "e" * 9)},
        "18 times as long, mostly by its Replace",
    ),
    "a text before each character": (
        {"normalizer": replace({"Regex": "x*"}, "y" * 8)},
        "18 times as long",
    ),
    "a text before each part": (
        {"normalizer": {"type": "Prepend", "prepend": "y" * 8}},
        "18 times",
    ),
    "little, often": (
        {"normalizer": sequence(*[replace({"String": "e"}, "ee")] * 4)},
        "32 times as long",
    ),
    "deeper": ({"normalizer": sequence(sequence(replace({"String": "e"}, "e" * 99)))}, "198 times"),
    "bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 4}},
        "16 times as long",
    ),
    "slow": ({"normalizer": sequence(*[NFD] * 40)}, "splits every text 42 times"),
    "no pattern": ({"normalizer": replace({"String": ""}, "x")}, "a pattern has 0 characters"),
    "a long pattern": ({"pre_tokenizer": split_by("a" * 9000)}, "a pattern has 9,000 characters"),
    "a kind of tomorrow": ({"normalizer": {"type": "Repeat"}}, "growth of a text by its 'Repeat'"),
    "a map of characters": ({"normalizer": {"type": "Precompiled"}}, "'Precompiled'"),
    "many added tokens": ({"added_tokens": LONG}, r"added tokens have 1.1 MB, and at most 1.0 MB"),
    "no list": ({"added_tokens": 5}, "damaged"),
    "no type": ({"normalizer": {"n": 1}}, "damaged"),
    "a suffix": ({"model": {"end_of_word_suffix": "</w>"}}, "tokens have '</w>'"),
}


@each_of(("fields", "message"), BEYOND.values(), ids=BEYOND)
def test_a_file_that_could_fill_the_memory_is_refused_before_it_reads_a_text(fields, message):
    with pytest.raises(DataError, match=rf"x/tokenizer\.json.*{message}"):
        loaded(**fields)


def test_a_token_of_more_bytes_than_can_be_counted_is_refused():
    vocabulary = PLAIN["model"]["vocab"] | {"<|bos|>": 256, "a" * 65_536: 257}
    with pytest.raises(DataError, match="a token has 65,536 bytes"):
        loaded({"vocab": vocabulary})


def test_what_repeats_cuts_or_drops_parts_of_a_text_does_nothing():
    text = b"abc abc"
    plain = loaded()
    odd = loaded(
        {"dropout": 0.5},
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 500,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}] * 500,
            "special_tokens": {},
        },
    )
    assert odd.encode(text).tolist() == plain.encode(text).tolist()
    assert odd.sha256 != plain.sha256  # the file itself is kept


@each_of(
    "fields",
    [
        {"normalizer": {"type": "NFC"}},
        {"normalizer": sequence({"type": "NFKC"}, {"type": "Lowercase"})},
        {"normalizer": replace({"String": " "}, "\u2581")},
        *({"pre_tokenizer": split_by(pattern)} for pattern in PATTERNS),
    ],
)
def test_tokenizers_of_well_known_models_encode_in_this_process(fields):
    assert loaded(**fields)._process is None
    assert accepted(shipped().description, "").growth <= 4


@pytest.mark.slow
def test_a_pattern_of_a_files_own_encodes_apart_and_may_fail_without_harm():
    tokenizer = loaded(pre_tokenizer=split_by(BACKTRACKS))
    text = "aaab, \u00fc".encode()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [len(ids) for ids in tokenizer.encode_all([b"a", b"", b"bb"])] == [1, 0, 2]
    with pytest.raises(DataError, match=r"x/tokenizer\.json fail on this text: .*retry-limit"):
        tokenizer.encode(b"a" * 60)  # a panic in Rust
    assert tokenizer.encode(b"ab").tolist() == [97, 98]
    again = pickle.loads(pickle.dumps(tokenizer._process))
    assert [ids.tolist() for ids in again.encode(["ab"])] == [[97, 98]]
    again.close()
    tokenizer.close()


@pytest.mark.slow
def test_a_pattern_that_does_not_come_to_an_end_is_given_up(monkeypatch):
    tokenizer = loaded(pre_tokenizer=split_by(ENDLESS))
    assert len(tokenizer.encode(b"ab")) == 2  # its process is there
    monkeypatch.setattr(foreign_tokenizers, "START_S", 0.0)
    monkeypatch.setattr(foreign_tokenizers, "BYTES_PER_S", 1e9)
    with pytest.raises(DataError, match="take more than .* of text; use another tokenizer"):
        tokenizer.encode(FOR_MINUTES)
    assert tokenizer._process._process is None


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False])
def test_another_thread_may_end_what_encodes_before_or_amid_a_text(is_first):
    tokenizer, refused = loaded(pre_tokenizer=split_by(ENDLESS)), []

    def encode():
        with pytest.raises(DataError) as caught:
            tokenizer.encode(FOR_MINUTES)
        refused.append(str(caught.value))

    if is_first:
        tokenizer.close()
    threads = begin(lambda work: work(), [encode])
    wait_until(lambda: refused or tokenizer._process._process)
    tokenizer.close()
    join(threads)
    assert "ended the process that encodes by signal SIGKILL" in refused[0]
