"""Two finalists of a search of suite lm meet."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest.mock import Mock

import pytest

from mlxhog.base.quantities import Interval
from mlxhog.errors import ConfigError
from mlxhog.experiments import CompareConfig
from mlxhog.experiments.paired_test import PairedResult
from mlxhog.experiments.pairs import RunPair, Side, TrainedRun
from mlxhog.mad.api import new_search
from mlxhog.mad.options import ExecutionConfig, SearchOptions
from mlxhog.mad.study import final, session
from mlxhog.mad.study.scheduler import seconds_used
from mlxhog.mad.study.store import open_store
from tests.mad.study.made_up import REAL, STUDY, better_at_3e_3, made_up, searched

pytestmark = pytest.mark.usefixtures("answers")


def test_a_mac_stays_awake_until_the_final_has_ended(tmp_path, monkeypatch):
    states, messages, answer = [], [], final.compare

    @contextmanager
    def awake():
        states.append("awake")
        yield "this Mac may fall asleep"
        states.append("asleep")

    def compare(*of):
        states.append("final")
        return answer(*of)

    monkeypatch.setattr(session.darwin, "awake", awake)
    monkeypatch.setattr(final, "compare", compare)
    store, how = open_store(STUDY, tmp_path, "s"), ExecutionConfig(parallel=2)
    session.execute(store, STUDY, how, lambda now: messages.append(now.message), made_up)
    assert states == ["awake", "final", "asleep"]
    assert messages[0] == "this Mac may fall asleep"


@pytest.fixture
def begin(monkeypatch):
    """Begins the final of two candidates, and returns the arguments of its comparison."""
    comparison = Mock(side_effect=ConfigError("enough"))
    monkeypatch.setattr(final, "Comparison", comparison)

    def final_of(study, two):
        with pytest.raises(ConfigError, match="enough"):
            REAL(study.store, study.definition, two, lambda message: None, Interval())
        return comparison.call_args.args

    return final_of


def test_pairs_of_other_finalists_stay_apart(tmp_path, begin):
    study, _ = searched(tmp_path)
    rows = [*study][:3]
    folders = [begin(study, two)[-1] for two in (rows[:2], rows[1:], rows[:2])]
    assert folders[0] == folders[2] != folders[1]


@dataclass
class MadeUpPairs:
    """A comparison whose every pair takes 20 s; it has an answer after two."""

    a: Side
    b: Side
    terms: CompareConfig
    folder: Path
    pairs: ClassVar[list[RunPair]] = []

    open = nullcontext

    @property
    def outcome(self):
        return PairedResult(len(self.pairs), 2, 0.1, 0.0, 0.2)

    def run_next(self, tell):
        one = TrainedRun("run", 1.0, "done", 1, 1, 10.0)
        self.pairs.append(RunPair(len(self.pairs), "a", one, one))


def test_a_budget_of_time_holds_in_the_final_which_the_next_session_continues(
    tmp_path, monkeypatch
):
    study, _ = searched(tmp_path)
    facts = dict.fromkeys(final.FIELDS, "A is better")
    monkeypatch.setattr(final, "compare", REAL)
    monkeypatch.setattr(final, "Comparison", MadeUpPairs)
    monkeypatch.setattr(final, "result_of", lambda comparison: SimpleNamespace(facts=facts))
    (study.store.directory / "final.json").unlink()
    used_s = seconds_used(study.store.records())
    for seconds, pairs, status in (
        (used_s, 0, "budget"), (used_s + 1, 1, "budget"), (used_s + 21, 2, "done")
    ):  # fmt: skip
        how = ExecutionConfig(parallel=2, budget=Interval(seconds=seconds))
        ended = session.execute(study.store, study.definition, how, run=made_up)
        assert (ended.status, len(MadeUpPairs.pairs)) == (status, pairs)
        assert (study.store.final() is None) == (status == "budget")


def test_finalists_meet_at_the_learning_rates_by_which_they_are_ranked(tmp_path, begin):
    study, _ = searched(tmp_path, rates=(1e-3, 3e-3, 9e-3), run=better_at_3e_3)
    a, b, *_ = begin(study, [*study][:2])
    assert a.config.lr == b.config.lr == 3e-3


def test_bits_per_byte_alone_lead_to_a_final_and_a_part_of_a_space_is_drawn(here):
    def searching(**given):
        config = SearchOptions(data="text.txt", **{"suite": "lm:2ktok", **given})
        return new_search(config, {}, ExecutionConfig()).definition

    assert (searching().pairs, searching().sampler) == (6, "grid")
    assert searching(pairs=0).pairs == searching(objective="params").pairs == 0
    assert searching(suite="lm:2ktok+smoke").pairs == 0
    assert searching(candidates=3).sampler == "random"
    assert searching(candidates=3, sampler="grid").sampler == "grid"
