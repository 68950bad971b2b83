"""Options that contradict each other or have no effect are refused, with the way out."""

import pytest

from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.optim import Muon
from tests.pairs import each_of

ROUNDS = "determinism=rounds steps=5"
RECORD = "determinism=record"
CONTRADICTIONS = f"""
read=live predict=own                                 predict=none
async_after=0.1 strategy=sync                         async_after
predict=last optimizer=adamw                          add moments=shared
predict=own strategy=round_robin                      none and last only; set one of them
reset_optimizer=true                                  needs resume; set that
overlap=true strategy=sync                            overlap: a worker of sync reads after its own
overlap=true {RECORD}                     record, but a record has the read, the
overlap=true read=live                                overlap: live reads would see
overlap=true gpu_write=metal-emulated                 overlap: gpu_write is metal-emul
overlap=true orthogonalization_device=worker          set orthogonalization_device=cpu
average_every=5 slack=1                               no strategy has both average_every and slack
clients=3 strategy=local_sgd                          is for split=dirichlet, and split is none
sync_shares=speed strategy=hogwild                    add that, or take sync
strategy=round_robin read=live                        leave read out
strategy=avg_runs gpu_write=metal                     own copy
determinism=rounds time=5                             give --steps or --tokens
determinism=rounds                                    needs a budget in steps or tokens
{ROUNDS} batch_size=auto            give --batch-size a number
{ROUNDS} sync_shares=speed          times that are measured
{ROUNDS} backup_workers=1           leave backup_workers out
{RECORD} strategy=sync                    strategy is sync; leave it out
{RECORD} read=live                        set read=snapshot
{RECORD} sparsify=topk:0.1                leave sparsify out
{RECORD} blocks=disjoint                  disjoint has no record
{RECORD} resume=latest                    add --determinism none
live=off live_every=5s                                and live is off.*leave live_every out
kernels=native cpu_blas=reference                     and kernels is native.*leave cpu_blas out
eval_every=off eval_tokens=512                        needs eval_every.*leave eval_tokens out
round_every=5                                         needs cluster; set that
"""


def rows():
    for line in CONTRADICTIONS.strip().splitlines():
        values, _, message = line.partition("   ")
        yield dict(word.split("=", 1) for word in values.split()), message.strip()


@each_of(("values", "message"), rows())
def test_options_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig(**values)
    begin, _, end = message.partition(".*")
    assert begin in str(error.value)
    assert end in str(error.value)


def test_what_a_run_without_copies_has_and_numbers_of_an_open_optimizer_are_no_contradiction():
    assert not TrainConfig(live="off", live_every="off").live_every.on
    config = TrainConfig(resume="latest", nesterov=0.2, predict="last")
    assert config.optimizer == Muon(nesterov=0.2)
