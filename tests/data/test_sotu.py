"""The embedded corpus is exactly the text that SOURCES.md describes."""

import importlib.resources

import pytest

from mlxhog.data import sotu as text
from mlxhog.data.sotu import read_sotu


@pytest.fixture(scope="module")
def addresses():
    return read_sotu()


@pytest.mark.slow
def test_the_corpus_has_the_facts_of_its_description(addresses):
    texts = [a.text.encode() for a in addresses]
    joined = b"".join(texts)
    assert len(addresses) == 233
    assert [a.year for a in addresses] == sorted(a.year for a in addresses)
    assert (addresses[0].year, addresses[-1].year) == (1790, 2021)
    assert len({a.name for a in addresses}) == 43
    assert len({a.party for a in addresses}) == 8
    assert len(set(texts)) == 233
    assert len(joined) == 10_761_158
    assert not any("\n" in a.text for a in addresses)
    assert sum(len(t) for i, t in enumerate(texts) if i % 12 == 5) == 863_914


def test_the_shipped_file_has_the_published_size_and_sources():
    texts = importlib.resources.files("mlxhog") / "data" / "texts"
    assert abs(len((texts / text.SOTU_FILE).read_bytes()) - 2_483_000) <= 3_000
    sources = (texts / "SOURCES.md").read_text()
    for fact in (text.SOTU_SHA256, "0.2.3", "PDDL-1.0", "CC0-1.0"):
        assert fact in sources
