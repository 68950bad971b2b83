"""Advice follows from the numbers: each recommendation turns where its number does."""

import pytest

from mlxhog.arena import Slot
from mlxhog.config.config import TrainConfig
from mlxhog.theory.analysis.advice import Analysis, Lag, advise
from mlxhog.theory.analysis.analyze import bounds_of, facts
from mlxhog.theory.analysis.conflicts import BlockConflicts
from mlxhog.theory.analysis.sampling import Block, StaleGradient
from mlxhog.theory.analysis.staleness import ObservedStaleness
from mlxhog.theory.simulator import Staleness
from tests.pairs import each_of
from tests.theory.bitmaps import of_lists

N, SAMPLES, UPDATES = 4000, 60, 1000


def block(name, supports):
    slot = Slot(name=name, shape=(N,), offset=0, size=N, kind="dense")
    return BlockConflicts.of(Block(name, None, (slot,)), of_lists(supports, N))


DENSE = block("dense", [range(N)] * SAMPLES)
SPARSE = block("sparse", [[k, 2000 + k] for k in range(SAMPLES)])


def seen(lost):
    return ObservedStaleness(
        source="probe",
        workers=2,
        write="racy",
        all=Staleness.of("all", {1: 99, 2: 1}),
        histogram={1: 99, 2: 1},
        lost_update_rate=lost,
        increments=1600,
    )


LAG = Lag(mean=1.0, largest=2.0, seen=True)


def advice(
    blocks=(DENSE,),
    *,
    write="lossless",
    trained=False,
    cosine=0.95,
    smoothness=10.0,
    lag=LAG,
    blocks_option="all",
    **options,
):
    chosen = {"strategy": "hogwild", "optimizer": "adamw", "lr": 1e-3, **options}
    if blocks_option != "all":
        chosen["blocks"] = blocks_option
    config = TrainConfig(**chosen)
    bounds = bounds_of(
        blocks,
        updates=UPDATES,
        lag=lag,
        largest_gradient=2.0,
        smoothness=smoothness,
        facts=facts(config, write),
    )
    topics = advise(
        Analysis(
            config=config,
            write=write,
            cores=8,
            trained=trained,
            blocks=blocks,
            lag=lag,
            observed=seen(0.125),
            stale_gradients=(StaleGradient(1, cosine),),
            bounds=tuple(bounds),
        )
    )
    return {one.topic: one for one in topics}


def test_dense_updates_are_to_be_added_losslessly_and_the_lost_share_is_said():
    write = advice()["write"]
    assert "losslessly" in write.recommend
    assert "0.12 of all increments were lost in the probe" in write.because
    assert write.flags == ""
    assert advice(write="racy")["write"].flags == "--write lossless"


def test_sparse_updates_may_be_added_racily_but_no_theorem_is_claimed_for_that():
    write = advice((SPARSE,))["write"]
    assert write.flags == "--write racy"
    assert "the theorems assume lossless ones" in write.recommend


@pytest.mark.slow
@each_of("blocks", [(DENSE,), (SPARSE,)], ids=["dense", "sparse"])
@each_of(
    "chosen",
    [
        {},
        {"write": "racy", "predict": "none"},
        {"optimizer": "sgd", "lr": 0.5},
        {"optimizer": "momentum", "async_after": 0.2},
        {"strategy": "avg_runs"},
        {"sparsify": "threshold:0.5"},
        {"strategy": "sync"},
        {"strategy": "round_robin"},
        {"blocks_option": "disjoint"},
        {"optimizer": "muon", "moments": "private"},
        {"optimizer": "muon", "sparsify": "threshold:0.5"},
        {"optimizer": "muon", "blocks_option": "disjoint"},
    ],
)
def test_every_flag_that_is_advised_goes_with_the_options_there_are(blocks, chosen):
    options = {("blocks" if name == "blocks_option" else name): v for name, v in chosen.items()}
    write = "racy" if chosen.get("write") == "racy" else "lossless"
    settings = {name: value for name, value in chosen.items() if name != "write"}
    topics = advice(blocks, write=write, cosine=0.2, **settings)
    for one in topics.values():
        words = one.flags.replace("--", "").replace("-", "_").split()
        added = dict(zip(words[::2], words[1::2], strict=True))
        TrainConfig(**options | added)


def test_sparsity_that_allows_no_lag_justifies_no_second_worker():
    workers = advice((SPARSE, DENSE))["workers"]
    assert "sparsity does not justify a second worker" in workers.because
    assert "allows a lag of 0.501 in dense" in workers.because
    assert workers.flags == ""


def test_updates_that_never_meet_allow_as_many_workers_as_there_are_cores():
    assert advice((SPARSE,))["workers"].flags == "--workers 8"


def test_a_step_of_sgd_beyond_the_rule_is_to_be_lowered_and_one_below_it_kept():
    # 1 / (L sqrt(tau_max tau_C)) = 1 / (10 sqrt(2 * 1)) = 0.0707
    above = advice(optimizer="sgd", lr=0.5)["step size"]
    assert above.flags == "--lr 0.071"
    below = advice(optimizer="sgd", lr=0.05)["step size"]
    assert below.recommend == "keep lr 0.05"
    heavy = advice(optimizer="momentum", momentum=0.9, lr=0.05)["step size"]
    assert heavy.flags == "--lr 0.0071"
    adam = advice(lr=0.5)["step size"]
    assert "does not cover AdamW" in adam.because
    assert adam.flags == ""


def test_reads_are_predicted_where_steps_come_late():
    assert advice(predict="none")["predicted reads"].flags == "--predict own"
    assert advice(predict="own")["predicted reads"].flags == ""
    assert "predicted reads" not in advice(lag=Lag(mean=0.0, largest=0.0, seen=True))
    assert "predicted reads" not in advice(strategy="sync")


def test_moments_are_to_be_shared_where_the_optimizer_would_share_them():
    private = advice(optimizer="muon", moments="private")["moments"]
    assert private.flags == "--moments shared --predict last"
    assert "moments" not in advice(optimizer="muon", moments="shared")
    assert "moments" not in advice(optimizer="adamw", moments="private")


@each_of(("cosine", "flags"), [(0.95, ""), (0.7, "--async-after 0.05"), (0.2, "--async-after 0.1")])
def test_the_faster_gradients_age_the_longer_training_begins_in_sync(cosine, flags):
    assert advice(cosine=cosine)["synchronous start"].flags == flags


def test_disjoint_blocks_are_offered_to_dense_models_alone():
    assert advice()["disjoint blocks"].flags == "--blocks disjoint"
    assert "disjoint blocks" not in advice((SPARSE,))
    assert "disjoint blocks" not in advice(blocks_option="disjoint")
