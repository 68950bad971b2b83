"""One definition of every option: values, files, flags, and what is said about mistakes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.base import plain_yaml
from mlxhog.base.quantities import Interval
from mlxhog.cli.frame import RunsDirectory
from mlxhog.cli.train import _TrainOptions, configuration
from mlxhog.cli.train import run as train
from mlxhog.config.config import TrainConfig
from mlxhog.config.options import options, settled
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.config.sources import read_yaml, resolve
from mlxhog.errors import ConfigError
from mlxhog.experiments import CompareConfig
from mlxhog.mad.options import ExecutionConfig, SearchOptions
from mlxhog.optim import AdamW, Apollo, Muon
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.serving import LoadOptions
from mlxhog.strategies import prediction_of, shares_moments, strategy_of
from tests.pairs import each_of


def written(tmp_path, text):
    path = tmp_path / "conf.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_every_default_is_legal_and_values_of_python_are_converted_like_those_of_yaml():
    config = TrainConfig()
    for name, spec in options(TrainConfig).items():
        # Which a new run has, and a resumed one brings along.
        if name not in ("time", "optimizer", "model", "tokenizer"):
            assert getattr(config, name) == spec.convert(spec.default), name
    assert config.time == 60.0  # a run without a budget takes a minute
    config = TrainConfig(steps="10k", lr="1e-3", time="10m", eval_every=50, threads="auto")
    assert (config.steps, config.lr, config.time) == (10_000, 1e-3, 600.0)
    assert (config.eval_every, config.threads) == (Interval(steps=50), None)
    assert TrainConfig(tokens=10).time is None


@each_of(
    ("line", "name", "value"),
    [
        ("lr: 1e-3", "lr", 1e-3),  # a text for YAML
        ("name: no", "name", "no"),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("seed: 010", "seed", 10),
        ("steps: 1_000", "steps", 1000),
        ("safety_checks: FALSE", "safety_checks", False),
        ("iters: 7", "steps", 7),
        ("steps_per_eval: 7", "eval_every", Interval(steps=7)),
        ("size: small", "model", "small"),
        ("grad_checkpoint: true", "recompute", "blocks"),
        ("grad_checkpoint: false", "recompute", "none"),
        ("# nothing", "seed", 0),
    ],
)
def test_a_line_of_yaml_says_what_it_says_also_by_names_of_mlx_lm(tmp_path, line, name, value):
    assert getattr(resolve(TrainConfig, [written(tmp_path, f"{line}\n"), {}]), name) == value


def test_numbers_of_numpy_are_numbers():
    config = TrainConfig(
        seed=np.int64(5), lr=np.float32(0.5), eval_every=np.uint8(9), workers=np.int32(2),
        set={"hidden_size": np.int64(256), "slstm_at": [np.int64(1)]}, beta1=np.float16(0.5),
        optimizer="adamw",
    )  # fmt: skip
    assert config == TrainConfig(
        seed=5, lr=0.5, eval_every=9, workers="2", set="hidden_size=256, slstm_at=[1]",
        optimizer=AdamW(beta1=0.5),
    )  # fmt: skip
    assert (type(config.seed), type(config.lr)) == (int, float)
    for values in ({"seed": np.array(5)}, {"seed": np.float32(0.5)}, {"set": {"a": object()}}):
        with pytest.raises(ConfigError, match="wanted"):
            TrainConfig(**values)


@each_of(
    ("cls", "names"),
    [(TrainConfig, ["runs_dir"]), (RunsDirectory, ["runs_dir"]), (LoadOptions, ["runs_dir"]),
     (CompareConfig, ["runs_dir", "folder"]), (ExecutionConfig, ["studies_dir"]),
     (_TrainOptions, ["config"]), (SearchOptions, ["space"]), (ClassicConfig, ["data"])],
)  # fmt: skip
def test_a_folder_or_a_file_may_begin_with_the_home(monkeypatch, cls, names):
    monkeypatch.setenv("HOME", "/home/ada")
    config = resolve(cls, [{name: ("~/mine", "--x") for name in names}])
    assert {getattr(config, name) for name in names} == {"/home/ada/mine"}
    with pytest.raises(ConfigError, match="the system does not know a user 'nosuchuser'"):
        resolve(cls, [{names[0]: ("~nosuchuser/mine", "--x")}])


def test_all_problems_are_reported_together_and_point_at_their_origin(tmp_path):
    file = written(tmp_path, "seed: one\nbatchsize: 2\nstrategy: hogwlid\ncompute_dtype: auto\n")
    flags = {"lr": ("-1", "--lr"), "steps": ("1.5", "--iters")}
    with pytest.raises(ConfigError) as error:
        resolve(TrainConfig, [file, flags])
    assert [line.rpartition("/")[2] for line in str(error.value).splitlines()] == [
        "conf.yaml:2: no option 'batchsize'; did you mean 'batch_size'?",
        "conf.yaml:4: no option 'compute_dtype'; did you mean 'dtype'?",
        "conf.yaml:3: strategy: no strategy 'hogwlid'; did you mean 'hogwild'? Strategies of your "
        "own need the file that defines them: --plugin FILE",
        "conf.yaml:1: seed is 'one'; wanted a whole number at least 0 and at most 4294967295",
        "--lr is '-1'; wanted a number above 0, or auto",
        "--iters is '1.5'; wanted a whole number at least 1, or none",
    ]
    for text, message in (
        ("just words\n", "conf.yaml: wanted lines such as"),
        ("lr: !!python/object:os.system x\n", "conf.yaml:1: not YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            written(tmp_path, text)


@given(
    lr=st.floats(1e-300, 1e300),
    steps=st.integers(1, 10**18),
    name=st.text(min_size=1).filter(lambda text: text != "none"),
)
def test_any_options_survive_yaml_without_the_run_they_resumed(tmp_path_factory, lr, steps, name):
    values = {"lr": lr, "steps": steps, "name": name, "set": {"slstm_at": [1, 3]}}
    text = TrainConfig(**values, resume="latest", optimizer="muon").to_yaml()
    again = resolve(TrainConfig, [written(tmp_path_factory.mktemp("yaml"), text)])
    assert again == TrainConfig(**values)


def test_flags_and_the_file_add_up_and_the_last_value_of_a_field_wins(tmp_path, monkeypatch):
    def fields(words):
        return configuration(*train.flags().parse(words.split())).set

    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("set: {hidden_size: 64, slstm_at: [1]}\n")
    Path("b.yaml").write_text("set: 5\n")
    both = fields("-c a.yaml --set hidden_size=256 --set num_heads=6")
    values = {"slstm_at": [1], "hidden_size": 256, "num_heads": 6}
    assert plain_yaml.assignments(both) == values
    assert plain_yaml.assignments(plain_yaml.as_assignments(values)) == values
    assert plain_yaml.assignments("a = 1e-6,b=null, a={x: 1, y: 2}") == {
        "a": {"x": 1, "y": 2},
        "b": None,
    }
    assert fields("-c a.yaml --set none") is None
    with pytest.raises(ConfigError, match=r"b.yaml:1: set is 5; wanted NAME=VALUE"):
        fields("-c b.yaml")


@each_of(
    ("text", "values"),
    [
        ('layers=["slstm(h1,a=b)", swiglu], b=2', {"layers": ["slstm(h1,a=b)", "swiglu"], "b": 2}),
        ("layers=slstm(h1, conv=4) swiglu, b=2", {"layers": "slstm(h1, conv=4) swiglu", "b": 2}),
        ("a={x: [1, y=2]}, b=it's, c=2,", {"a": {"x": [1, "y=2"]}, "b": "it's", "c": 2}),
        (
            r"""a="\"(, b=1", b='it''s (, a=1', c=)]""",
            {"a": '"(, b=1', "b": "it's (, a=1", "c": ")]"},
        ),
        ("a=x, y, b=2", {"a": "x, y", "b": 2}),
    ],
)
def test_a_comma_in_brackets_or_quotes_belongs_to_the_value(text, values):
    assert plain_yaml.assignments(text) == values
    assert plain_yaml.assignments(plain_yaml.as_assignments(values)) == values


def test_workers_are_slowed_by_rank():
    slowed = parse_slowdowns("0=1.5, 1=random:0.25:3,4=late:1m")
    of_one = Slowdown(factor=3.0, probability=0.25)
    assert slowed == {0: Slowdown(factor=1.5), 1: of_one, 4: Slowdown(delay_s=60.0)}
    assert parse_slowdowns(TrainConfig().inject_stragglers) == {}
    drawn = [of_one.factor_of(seed=7, rank=1, step=step) for step in range(1000)]
    assert drawn == [of_one.factor_of(seed=7, rank=1, step=step) for step in range(1000)]
    assert set(drawn) == {1.0, 3.0}
    assert 200 < drawn.count(3.0) < 300


@each_of(
    ("option", "forms", "texts"),
    [
        ("set", "", "hidden_size =3 a= a=[1"),
        (
            "inject_stragglers",
            "RANK=FACTOR, RANK=random",
            "2 1= one=2 1=0.5 1=2:3 1=random:2 1=late:soon 0=2,",
        ),
        ("sparsify", "none, topk:F", "topk topk:0 topk:1.1 topk:x threshold:-1 some:1"),
        ("staleness_lr", "none, linear:C", "linear:-1 exp:2 drop:x linear:1:2"),
        ("delay_compensation", "none, constant:F", "constant:0 adaptive:-1"),
        (
            "sim_staleness",
            "fixed:N",
            "fixed fixed:-1 uniform:3:1 histogram:1=0 speed:0,1 normal:1 "
            "geometric:1e17 geometric:1e308 speed:1e-200,1e200",
        ),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_with_the_legal_forms(option, forms, texts):
    for text in texts.split():
        with pytest.raises(ConfigError, match=rf"{option} is .*; .*{forms}"):
            TrainConfig(**{option: text})


def test_an_optimizer_follows_from_its_hyperparameters_and_a_resumed_run_may_keep_its_own():
    assert TrainConfig(eps=0.5).optimizer == Muon(eps=0.5)
    assert TrainConfig(eps=0.5, projection_rank=3).optimizer == Apollo(eps=0.5, rank=3)
    with pytest.raises(ConfigError, match="no optimizer has both nesterov and momentum"):
        TrainConfig(nesterov=0.5, momentum=0.5)
    assert TrainConfig().optimizer == TrainConfig(optimizer="auto").optimizer == Muon()
    assert TrainConfig(resume="latest").optimizer is None
    assert TrainConfig(resume="latest", optimizer="adamw").optimizer == AdamW()
    config = TrainConfig(optimizer="muon", nesterov=0.2, beta2=0.9, val_subset_tokens=512)
    changes = settled(TrainConfig, eval_every="off")
    other = dataclasses.replace(config, optimizer="adamw", **changes)
    assert (other.optimizer, other.eval_every.on, other.val_subset_tokens) == (AdamW(), False, None)


@each_of(
    ("values", "strategy", "shares", "predicts"),
    [
        ("moments=private gpu_write=cpu", "auto", False, "none"),
        ("determinism=record steps=5", "hogwild", True, "last"),
        ("determinism=rounds steps=5", "sync", False, "none"),
        ("async_after=0.1", "hogwild", True, "last"),
        ("read=live", "hogwild", True, "none"),
        ("sync_shares=speed", "sync", False, "none"),
        ("strategy=round_robin predict=last moments=shared", "round_robin", True, "last"),
        ("strategy=hogwild", "hogwild", True, "last"),
        ("strategy=hogwild optimizer=adamw", "hogwild", False, "own"),
        ("strategy=hogwild moments=private", "hogwild", False, "own"),
        ("strategy=hogwild optimizer=adamw moments=shared", "hogwild", True, "last"),
        ("strategy=round_robin moments=shared", "round_robin", True, "none"),
    ],
)
def test_strategy_moments_and_prediction_follow_from_others(values, strategy, shares, predicts):
    config = TrainConfig(**dict(word.split("=") for word in values.split()))
    assert getattr(strategy_of(config), "name", "auto") == strategy
    assert (shares_moments(config), prediction_of(config)) == (shares, predicts)


ROUNDS = "determinism=rounds steps=5"
RECORD = "determinism=record"
CONSTRAINTS = f"""
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
eval_every=off val_subset_tokens=512                  needs eval_every.*val_subset_tokens out
round_every=5                                         needs cluster; set that, or leave round_every
cluster=here:1 strategy=sync                          set strategy=hogwild
cluster=here:1 follow=notes                           leave follow or cluster out
cluster=here:1 determinism=record                     leave determinism out
cluster=here:1 cluster_timeout=5                    not above round_every
cluster=here:99999                                    wanted HOST:PORT
"""


def rows():
    for line in CONSTRAINTS.strip().splitlines():
        values, _, message = line.partition("   ")
        yield dict(word.split("=", 1) for word in values.split()), message.strip()


@each_of(("values", "message"), rows())
def test_options_that_break_a_constraint_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig(**values)
    begin, _, end = message.partition(".*")
    assert begin in str(error.value)
    assert end in str(error.value)


def test_a_run_without_snapshots_and_an_open_optimizer_break_no_constraint():
    assert not TrainConfig(live="off", live_every="off").live_every.on
    config = TrainConfig(resume="latest", nesterov=0.2, predict="last")
    assert config.optimizer == Muon(nesterov=0.2)
