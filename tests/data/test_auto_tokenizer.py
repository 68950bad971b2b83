"""`--tokenizer auto` fits text and model, and says what it took."""

import hashlib
import sys

import numpy as np
import pytest

from mlxhog.data import tokenizers
from mlxhog.data.auto_tokenizer import choose
from mlxhog.data.prepare import prepare
from mlxhog.data.sotu import SOTU_SHA256
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError
from tests.pairs import each_of
from tools import sotu_tokenizer

MIB = 1 << 20
TEXT = {"n_bytes": 4 * MIB, "width": 128, "sha256": "", "rule": "every-12th"}


@each_of(
    ("text", "spec", "reason"),
    [
        ({}, "bpe:4096", "learnt from 4.2 MB of training text for width 128"),
        ({"n_bytes": 4 * MIB - 1}, "bpe:2048", "learnt from"),
        ({"n_bytes": 100 * MIB, "width": 512}, "bpe:16384", "for width 512"),
        ({"n_bytes": 10_000 * MIB, "width": 4096}, "bpe:32768", "for width 4096"),
        ({"n_bytes": MIB}, "bpe:1024", "1.0 MB"),
        ({"n_bytes": MIB - 1}, "bytes", "1.0 MB of training text are few"),
        ({"width": 16}, "bytes", "width 16 is narrow"),
        ({"sha256": SOTU_SHA256}, "sotu", ""),
        ({"sha256": SOTU_SHA256, "rule": "tail"}, "bpe:4096", "learnt"),
    ],
)
def test_the_choice_is_a_function_of_text_and_width_with_its_reason(text, spec, reason):
    chosen, note = choose(**TEXT | text)
    assert chosen == spec
    assert reason in (note or "")
    assert spec == "sotu" or (note or "").startswith(f"tokenizer {spec}")


def test_without_the_package_that_learns_it_is_bytes_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    spec, note = choose(**TEXT)
    assert spec == "bytes"
    assert "python -m pip install tokenizers" in str(note)


@pytest.mark.slow
def test_the_shipped_tokenizer_is_learnt_from_the_training_documents_alone(monkeypatch):
    tokenizer = tokenizers.shipped()
    assert (tokenizer.n_ids, tokenizer.vocab_size, tokenizer.bos) == (4096, 4096, 0)
    texts = list(sotu_tokenizer.training_texts())
    assert (len(texts), sum(map(len, texts))) == (214, 9_897_244)
    assert hashlib.sha256(sotu_tokenizer.learn()).hexdigest() == tokenizers.SHIPPED_SHA256
    monkeypatch.setattr(tokenizers, "SHIPPED_SHA256", "0" * 64)
    with pytest.raises(DataError, match="expected 000000000000; reinstall mlxhog"):
        tokenizers.shipped()


@pytest.mark.slow
def test_a_learnt_vocabulary_is_encoded_in_parallel_as_text_by_text_and_learnt_once(tmp_path):
    prose, random = tmp_path / "prose", np.random.default_rng(0)
    prose.mkdir()
    words = ["".join(map(chr, random.integers(97, 123, 4))) for _ in range(2000)]
    for k in range(24):  # 1.2 MiB
        (prose / f"{k:02}.txt").write_text(" ".join(random.choice(words, 10_500)))
    first = prepare(str(prose), "auto", cache_dir=tmp_path / "cache")
    assert first.spec == "bpe:1024"
    assert first.notes[-1].startswith("tokenizer bpe:1024, learnt from 1.3 MB")
    held_out = [(prose / f"{k:02}.txt").read_bytes() for k in (5, 17)]
    expected = [[0, *first.tokenizer.encode(text).tolist()] for text in held_out]
    assert TokenFile.open(first.val).tokens.tolist() == [i for ids in expected for i in ids]
    before = first.train.stat().st_mtime_ns
    assert prepare(str(prose), "auto", cache_dir=tmp_path / "cache").notes == first.notes
    again = prepare(str(prose), "bpe:1024", cache_dir=tmp_path / "cache")
    assert again.train.stat().st_mtime_ns == before
