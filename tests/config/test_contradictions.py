"""Options that contradict each other or have no effect are refused, with the way out."""

import re

import pytest

from mlxhog.cli import main
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizers import Muon
from mlxhog.config.options import to_flag
from mlxhog.errors import ConfigError
from tests.pairs import each_of


@each_of(
    ("values", "message"),
    [
        ({"read": "live", "predict": "own"}, "predict=none"),
        ({"async_after": 0.1, "strategy": "sync"}, "async_after"),
        ({"moments": "shared", "optimizer": "sgd"}, "sgd has no moments; muon, adamw have"),
        ({"predict": "last", "optimizer": "adamw"}, "add moments=shared"),
        ({"predict": "last", "moments": "private"}, "add moments=shared"),
        (
            {"predict": "last", "moments": "shared", "strategy": "sync"},
            "sync has no predict; hogwild,",
        ),
        ({"predict": "last", "strategy": "serial"}, "not for serial"),
        ({"predict": "own", "strategy": "sync"}, "no predict; hogwild, serial, "),
        ({"predict": "own", "strategy": "avg_runs"}, "avg_runs has no predict"),
        ({"predict": "own", "strategy": "diloco"}, "diloco has no predict"),
        ({"predict": "own", "strategy": "round_robin"}, "none and last only; set one of them"),
        ({"optimizer": "muon", "predict": "last", "sparsify": "topk:0.1"}, "add moments=shared"),
        ({"reset_optimizer": True}, "add --resume"),
        ({"overlap": True, "strategy": "sync"}, "overlap: a worker of sync reads after its own"),
        ({"overlap": True, "strategy": "serial"}, "overlap: a worker of serial reads after"),
        ({"overlap": True, "strategy": "round_robin"}, "set strategy=hogwild, or leave overlap"),
        ({"overlap": True, "strategy": "diloco"}, "overlap: a worker of diloco reads after"),
        ({"overlap": True, "async_after": 0.1}, "overlap: a worker of hogwild.*leave overlap out"),
        ({"overlap": True, "blocks": "disjoint"}, "overlap: a worker of hogwild.*in an order"),
        ({"overlap": True, "determinism": "record"}, "record, but a record has the read, the"),
        ({"overlap": True, "determinism": "rounds", "steps": 9}, "overlap: a worker of sync"),
        ({"overlap": True, "read": "live"}, "overlap: live reads would see.*read=snapshot"),
        ({"overlap": True, "gpu_write": "metal-emulated"}, "overlap: gpu_write is metal-emul"),
        ({"overlap": True, "delay_compensation": "constant:1"}, "overlap: delay_compensation"),
        ({"overlap": True, "delay_feedback": True}, "overlap: delay_feedback counts the updates"),
        (
            {"overlap": True, "orthogonalization_device": "worker"},
            "overlap: orthogonalization_device is worker.*set orthogonalization_device=cpu",
        ),
        ({"moments": "shared", "optimizer": "soap"}, "soap has no moments; muon, adamw have"),
        (
            {"beta2_half_life": 1000, "optimizer": "momentum"},
            "momentum has no beta2_half_life; muon, adamw, adan, apollo, apollo-mini, lion, soap",
        ),
        ({"projection_rank": 4, "optimizer": "apollo-mini"}, "has no projection_rank; apollo has"),
        ({"lr_workers": "sqrt", "strategy": "sync"}, "sync has no lr_workers; hogwild,"),
        ({"nesterov": 0.2, "optimizer": "adamw"}, "nesterov: adamw has no nesterov; muon has"),
        (
            {"orthogonalization": "ns5", "optimizer": "sgd"},
            "sgd has no orthogonalization; muon has",
        ),
        ({"orthogonalization_rows": 8, "optimizer": "lion"}, "no orthogonalization_rows; muon has"),
        ({"orthogonalization_every": 2, "optimizer": "soap"}, "soap has no .*_every; muon has"),
        ({"orthogonalization_device": "cpu", "optimizer": "soap"}, "soap has no .*; muon has"),
        ({"projection_rank": 4, "optimizer": "muon"}, "muon has no projection_rank; apollo has"),
        ({"projection_scale": 4, "optimizer": "muon"}, "apollo, apollo-mini have"),
        ({"projection_every": 4, "optimizer": "muon"}, "apollo, apollo-mini have"),
        ({"precondition_every": 4, "optimizer": "muon"}, "muon has no precondition_every; soap"),
        ({"beta3": 0.5, "optimizer": "muon"}, "muon has no beta3; adan has"),
        ({"momentum": 0.5, "optimizer": "muon"}, "muon has no momentum; momentum has"),
        ({"backoff_steps": 5}, "cosine has no backoff_steps; backoff, inverse have"),
        ({"backoff_beta": 0.5, "schedule": "inverse"}, "inverse has no backoff_beta; backoff has"),
        ({"average_every": 5, "slack": 1}, "no strategy has both average_every and slack"),
        ({"average_every": 5, "strategy": "avg_runs"}, "local_sgd, fedprox, scaffold, diloco have"),
        ({"prox_mu": 0.1, "strategy": "local_sgd"}, "local_sgd has no prox_mu; fedprox has"),
        ({"split": "dirichlet", "strategy": "sync"}, "no split; local_sgd, avg_runs, fedprox,"),
        ({"clients": 3, "strategy": "local_sgd"}, "is for split=dirichlet; add that"),
        ({"replicas": 2, "strategy": "sync"}, "sync has no replicas; diloco has"),
        ({"sync_shares": "speed", "strategy": "hogwild"}, "add that, or take sync"),
        ({"schedule": "backoff(beta=2)"}, "backoff: beta is '2'; wanted a number above 0"),
        ({"strategy": "round_robin", "read": "live"}, "leave read out"),
        ({"strategy": "round_robin", "write": "racy"}, "no other process writes beside"),
        ({"strategy": "avg_runs", "gpu_write": "metal"}, "own copy"),
        ({"strategy": "avg_runs", "moments": "shared"}, "runs are independent"),
        ({"determinism": "rounds", "time": 5}, "give --steps or --tokens"),
        ({"determinism": "rounds"}, "needs a budget in steps or tokens"),
        ({"determinism": "rounds", "steps": 5, "batch_size": "auto"}, "give --batch-size a number"),
        ({"determinism": "rounds", "steps": 5, "sync_shares": "speed"}, "times that are measured"),
        ({"determinism": "rounds", "steps": 5, "backup_workers": 1}, "leave backup_workers out"),
        ({"determinism": "record", "delay_compensation": "constant:1"}, "without a lock"),
        ({"determinism": "record", "strategy": "sync"}, "strategy is sync; leave it out"),
        ({"determinism": "record", "read": "live"}, "set read=snapshot"),
        ({"determinism": "record", "write": "racy"}, "set write=lossless"),
        ({"determinism": "record", "gpu_write": "metal"}, "set gpu_write=cpu"),
        ({"determinism": "record", "sparsify": "topk:0.1"}, "leave sparsify out"),
        ({"determinism": "record", "blocks": "disjoint"}, "disjoint has no record"),
        ({"determinism": "record", "async_after": 0.5}, "async_after begins in rounds"),
        ({"determinism": "record", "follow": "new"}, "leave follow out"),
        ({"determinism": "record", "resume": "latest"}, "add --determinism none"),
    ],
)
def test_options_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


@each_of(
    ("flags", "option"),
    [
        ("--optimizer sgd --beta1 0.5", "beta1"),
        ("--optimizer sgd --beta2 0.9", "beta2"),
        ("--optimizer sgd --eps 0.5", "eps"),
        ("--optimizer momentum --beta1 0.5", "beta1"),
        ("--optimizer momentum --beta2 0.9", "beta2"),
        ("--optimizer momentum --eps 0.5", "eps"),
        ("--optimizer lion --eps 0.5", "eps"),
        ("--schedule constant --lr-floor 0.5", "lr_floor"),
        ("--schedule inverse --warmup 0.5", "warmup"),
        ("--schedule inverse --lr-floor 0.5", "lr_floor"),
        ("--schedule backoff --warmup 0.5", "warmup"),
        ("--schedule backoff --lr-floor 0.5", "lr_floor"),
        ("--rotate-every 5", "rotate_every"),
        ("--live off --live-every 5s", "live_every"),
        ("--kernels native --cpu-blas reference", "cpu_blas"),
        ("--eval-every off --eval-tokens 512", "eval_tokens"),
    ],
)
def test_an_option_without_effect_is_refused_with_the_way_out(flags, option, capsys):
    assert main(["train", "--dry-run", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    flag = to_flag(option)
    switched_off = rf"{option}: .*(, not |is ).*; .*leave (it|{option}) out$"
    assert re.search(rf"({switched_off})|(^{flag}: \w+ has no {option}; .* ha(s|ve)$)", line), line


def test_what_every_run_without_copies_for_readers_has_is_no_contradiction():
    assert not TrainConfig(live="off", live_every="off").live_every.on


def test_an_option_of_an_optimizer_may_stand_beside_that_of_a_run_which_is_not_open_yet():
    config = TrainConfig(resume="latest", nesterov=0.2, predict="last")
    assert config.optimizer == Muon(nesterov=0.2)
