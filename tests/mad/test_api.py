"""`mlxhog.mad`: the commands' work as functions and objects."""

import json

import numpy as np
import pytest

from mlxhog import mad
from mlxhog.base import plain_json
from mlxhog.config.sources import of_keywords
from mlxhog.errors import ConfigError, EnvironmentLacks, StudyError
from mlxhog.mad.api import recipe_of
from mlxhog.models.registry import load_architecture
from tests.cli.command import told
from tests.pairs import each_of

TINY = {"tasks": ["memorization", "CR"], "steps": 4, "eval_every": 2, "dim": 16, "batch_size": 8}
SPACE = mad.Space(depth=2, mixers=("gated-conv", "gated-conv(kernel=2)"), channels=("swiglu",))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_study_is_begun_cut_resumed_and_read_as_by_the_commands(capsys):
    study = mad.search(SPACE, study="s", budget=1, parallel=1, prune=False, **TINY)
    assert (study.status, [*study.outcome.statuses.items()]) == ("budget", [("done", 2)])
    other = mad.Study("s")
    assert (other.status, other.outcome) == ("", None)
    assert other.resume(parallel=1).status == "done"
    assert len([*other]) == 2
    assert other.best.candidate == next(iter(study)).candidate == study.best.candidate
    ranking = json.loads(plain_json.dumps(mad.leaderboard("s").to_json()))
    assert ranking == told(capsys, "mad", "leaderboard", "s")
    printed = told(capsys, "mad", "resume", "s", "--quiet")
    assert other.to_json() | {"seconds": 0} == printed | {"seconds": 0}
    with pytest.raises(ConfigError, match="had no session here"):
        mad.Study("s").to_json()


def test_a_search_of_a_space_without_a_name_is_called_after_what_it_is(monkeypatch):
    monkeypatch.setattr(mad.Study, "run", lambda self, *_: self)
    assert mad.search(SPACE, **TINY).store.name.startswith("search-smoke-")
    assert mad.bench("swiglu", **TINY).store.name.startswith("bench-smoke-")


def test_named_architectures_are_scored_and_the_best_is_deepened(capsys):
    study = mad.bench("gated-conv swiglu", "swiglu", study="b", seeds=(7,), **TINY)
    assert study.definition.seeds == (7,)
    deep = mad.deepen(study, depth=len(study.best.layers) * 2, output="deep.yaml")
    again = told(
        capsys, "mad", "deepen", "b", "--depth", f"{deep.model.num_hidden_layers}",
        "--output", "deep.yaml",
    )  # fmt: skip
    assert deep.to_json() == again


def test_a_deeper_model_has_numbers_of_numpy_and_a_file_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    sizes = {"depth": np.int64(4), "dim": np.int64(32), "vocab": np.int32(320)}
    deep = mad.deepen("mlstm swiglu", output="~/deep.yaml", **sizes)
    assert deep.file == str(tmp_path / "home" / "deep.yaml")
    assert load_architecture(deep.file).hidden_size == 32
    assert json.loads(json.dumps(deep.to_json()))["depth"] == 4
    with pytest.raises(StudyError, match="home/mine"):
        mad.leaderboard("s", studies_dir="~/mine")


@each_of(
    ("call", "error", "message"),
    [
        (lambda: mad.search(SPACE, stepps=2), ConfigError, "did you mean 'steps'"),
        (lambda: mad.search(SPACE, paralel=2), ConfigError, "did you mean 'parallel'"),
        (lambda: mad.bench("mlstm", studi="x"), ConfigError, r"bench\(\): .* mean 'study'"),
        (lambda: mad.search(SPACE, lr=1, rates=[1, 2]), ConfigError, "rates and lr are both given"),
        (
            lambda: mad.search(SPACE, learning_rate=1, rates=[1, 2]),
            ConfigError,
            "rates and lr are both given",
        ),
        (lambda: mad.search("none.yaml", tasks=[]), ConfigError, r"tasks is \[\]; wanted text"),
        (lambda: mad.bench(["mlstm", "gla"]), ConfigError, r"text, as in bench\(\*lines\)"),
        (lambda: mad.bench(), ConfigError, "give an architecture"),
        (lambda: mad.Study("s"), StudyError, "no study 's'"),
        (lambda: mad.deepen("mlstm", depth=2, output="a.txt"), ConfigError, "name a YAML file"),
        (
            lambda: mad.deepen("mlstm", depth=2, output="a.yaml", how="up"),
            ConfigError,
            "how is 'up'; wanted one of stack, stretch",
        ),
        (
            lambda: mad.deepen("mlstm", depth="two", output="a.yaml", dim=0),
            ConfigError,
            "(?s)depth is 'two'; wanted .*dim is 0; wanted",
        ),
        (
            lambda: mad.deepen("mlstm", depth=2.0, output="none/a.yaml"),
            EnvironmentLacks,
            "writing none/a.yaml failed: its directory no longer exists",
        ),
    ],
)
def test_wrong_calls_are_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_recipe_has_the_options_that_are_given_by_their_names_in_other_tools():
    given = of_keywords("search()", {"learning_rate": 1e-3, "iters": 5, "second_moment": "shared"})
    recipe = recipe_of(given)
    assert recipe == {"lr": 1e-3, "steps": 5, "epochs": None, "moments": "shared"}
