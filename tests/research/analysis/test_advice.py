"""Advice follows from the numbers: each recommendation turns where its number does."""

import pytest

from mlxhog.arena import Slot
from mlxhog.config.config import TrainConfig
from mlxhog.research.analysis.advice import Analysis, RunStaleness, advise
from mlxhog.research.analysis.analyze import bounds_of, facts
from mlxhog.research.analysis.conflicts import BlockConflicts
from mlxhog.research.analysis.sampling import Block, StaleGradient
from mlxhog.research.hypergraph import Hypergraph
from tests.pairs import each_of

N, SAMPLES, UPDATES = 4000, 60, 1000


def block(name, supports):
    slot = Slot(name=name, shape=(N,), offset=0, size=N, kind="dense")
    return BlockConflicts.of(Block(name, None, (slot,)), Hypergraph.of_lists(supports, N))


DENSE = block("dense", [range(N)] * SAMPLES)
SPARSE = block("sparse", [[k, 2000 + k] for k in range(SAMPLES)])
SEEN = {"source": "probe", "write": "racy", "lost_update_rate": 0.125}
STALE = RunStaleness(mean=1.0, largest=2.0, measured=True)


def advice(blocks=(DENSE,), *, write="lossless", cosine=0.95, staleness=STALE, **options):
    config = TrainConfig(**{"strategy": "hogwild", "optimizer": "adamw", "lr": 1e-3, **options})
    bounds = bounds_of(blocks, updates=UPDATES, staleness=staleness, facts=facts(config, write))
    analysis = Analysis(
        config=config, write=write, cores=8, trained=False, blocks=blocks, staleness=staleness,
        observed=SEEN,
        stale_gradients=(StaleGradient(1, cosine),), bounds=tuple(bounds),
    )  # fmt: skip
    return {one["topic"]: one for one in advise(analysis)}


@each_of(
    ("topic", "how", "flags", "words"),
    [
        ("write", {}, "", "losslessly"),
        ("write", {}, "", "0.12 of all increments were lost in the probe"),
        ("write", {"write": "racy"}, "--write lossless", ""),
        ("workers", {"blocks": (SPARSE, DENSE)}, "", "allows a staleness of 0.501 in dense"),
        ("workers", {"blocks": (SPARSE,)}, "--workers 8", ""),
        ("weight prediction", {"predict": "none"}, "--predict own", ""),
        ("weight prediction", {"predict": "own"}, "", "keep predict"),
        ("weight prediction", {"staleness": RunStaleness(0.0, 0.0, measured=True)}, None, ""),
        ("weight prediction", {"strategy": "sync"}, None, ""),
        ("synchronous start", {"cosine": 0.95}, "", "not needed"),
        ("synchronous start", {"cosine": 0.7}, "--async-after 0.05", ""),
        ("synchronous start", {"cosine": 0.2}, "--async-after 0.1", ""),
        ("disjoint blocks", {}, "--blocks disjoint", ""),
        ("disjoint blocks", {"blocks": (SPARSE,)}, None, ""),
    ],
)
def test_advice_turns_where_its_number_does(topic, how, flags, words):
    one = advice(**how).get(topic)
    assert (one and one["flags"]) == flags
    assert one is None or words in f"{one['recommend']} {one['because']}"


def test_a_block_counts_the_elements_that_an_update_touches_and_those_that_none_does():
    assert (DENSE.omega, DENSE.mean, DENSE.untouched) == (N, N, 0)
    assert (SPARSE.omega, SPARSE.mean, SPARSE.untouched) == (2, 2, N - 2 * SAMPLES)


@pytest.mark.slow
@each_of("blocks", [(DENSE,), (SPARSE,)], ids=["dense", "sparse"])
@each_of(
    "chosen",
    [
        {}, {"predict": "none"}, {"optimizer": "sgd", "lr": 0.5}, {"strategy": "avg_runs"},
        {"optimizer": "momentum", "async_after": 0.2}, {"sparsify": "threshold:0.5"},
        {"strategy": "sync"}, {"strategy": "round_robin"},
        {"optimizer": "muon", "moments": "private"},
        {"optimizer": "muon", "sparsify": "threshold:0.5"},
    ],
)  # fmt: skip
def test_every_flag_that_is_advised_goes_with_the_options_there_are(blocks, chosen):
    for one in advice(blocks, cosine=0.2, **chosen).values():
        words = one["flags"].replace("--", "").replace("-", "_").split()
        TrainConfig(**chosen | dict(zip(words[::2], words[1::2], strict=True)))
