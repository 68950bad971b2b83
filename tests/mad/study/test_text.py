"""Suite lm: rungs, objectives, limits; most runs are made up, two are trained."""

import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import mad
from mlxhog.base import plain_json
from mlxhog.cli import main
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.mad.objectives import OUT, ordered, pareto, parse_limit
from mlxhog.mad.options import OBJECTIVES, ExecutionConfig
from mlxhog.mad.report.leaderboard import section
from mlxhog.mad.report.page import page
from mlxhog.mad.report.progress import state_line
from mlxhog.mad.run import params
from mlxhog.mad.study import final, session
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import Store, open_store
from mlxhog.mad.tasks.text import TEXT_TASK, score_of
from mlxhog.mad.training import text
from mlxhog.mad.winner import elected
from mlxhog.models.layers import at_width
from mlxhog.models.mad.sequence import parse
from tests.cli.command import told
from tests.mad.study.made_up import (
    BEST,
    BITS,
    NAMES,
    REAL,
    STUDY,
    cannot_decode,
    diverging,
    fails,
    names,
    placed,
    searched,
    without_text,
)
from tests.pairs import each_of

pytestmark = pytest.mark.usefixtures("answers")


def test_the_best_third_goes_on_with_three_times_the_budget_and_the_last_two_meet(tmp_path):
    study, outcome = searched(tmp_path)
    assert study.definition.rungs == (6, 2)
    runs = [(one.rung, one.config["settings"]["tokens"]) for one in study.store.records()]
    assert sorted(runs) == [(0, 3000)] * 6 + [(1, 9000)] * 2
    assert study.definition.total == len(runs)
    assert names(study) == BEST
    assert [row.status for row in study] == ["done"] * 2 + ["pruned"] * 4
    assert [row.rung for row in study] == [1, 1, 0, 0, 0, 0]
    assert (outcome.status, outcome.best.candidate) == ("done", BEST[0])
    ranking = study.leaderboard().to_json()
    assert (ranking["final"]["a"], ranking["final"]["b"]) == tuple(BEST[:2])
    assert not ranking["partial"]
    assert "best 1.100 bits/byte " in state_line(outcome)
    assert "final of A #1 and B #2: A is better" in page(study.leaderboard(), (), version="1")
    study.outcome = outcome
    assert study.to_json()["best"]["measures"]["val_bits_per_byte"] == pytest.approx(1.1)


def test_a_rung_with_too_few_candidates_leaves_no_runs_to_wait_for(tmp_path):
    study, outcome = searched(tmp_path, run=diverging, sampler="random")
    ranking = study.leaderboard()
    assert (outcome.status, ranking.planned, ranking.lacking) == ("done", 7, "")
    assert study.best.candidate == BEST[0]
    assert [row.is_on_front for row in study] == [True] + [False] * 5
    assert {one["reason"] for one in ranking.troubles} == {
        "the loss is not finite", "it cannot decode: no state"
    }  # fmt: skip
    assert any("it cannot decode: no state" in note for note in section(ranking).notes)


def test_runs_of_a_sweep_that_a_rung_lacks_are_not_waited_for(tmp_path):
    study, outcome = searched(tmp_path, run=diverging, sampler="random", rates=(1e-3, 3e-3))
    assert (outcome.status, outcome.done) == ("done", outcome.total)
    assert outcome.total == study.leaderboard().planned == 6 * 2 + 2


def test_a_candidate_whose_text_alone_is_lost_does_not_go_on(tmp_path):
    how = {"suite": "lm:9000tok+smoke", "tasks": ("memorization",), "pairs": 0}
    study, outcome = searched(tmp_path, run=without_text, **how)
    assert outcome.status == "done"
    assert all(row.rung == 0 for row in study)


@each_of("given", [{"optimizer": "lion"}, {"optimizer": "adamw(weight_decay=0.1)"}])
def test_another_optimizer_has_its_own_rate_and_decay_on_the_tasks_beside_text(given):
    def recipes(suite, *tasks):
        study = StudyDefinition(candidates=("swiglu",), suite=suite, tasks=tasks, recipe=given)
        return {run.recipe for run in study.runs("swiglu") if run.task != TEXT_TASK}

    assert recipes("lm:9000tok+smoke") == recipes("smoke")
    assert recipes("lm:9000tok+smoke", "depo") == recipes("smoke", "depo")


def test_only_candidates_within_the_limits_vote_with_their_scores(tmp_path):
    study, _ = searched(tmp_path, prune=False, limit=("decode_tokens_per_s >= 600",))
    within = {row.candidate: row.score for row in study if not row.beyond}
    assert 0 < len(within) < len([*study])
    voters = elected(study.store)["voters"]
    assert voters
    assert all(voter["score"] == within[voter["layers"]] for voter in voters)


@each_of("top", [None, 1])
def test_the_finals_winner_is_first_and_outvotes_its_loser(tmp_path, answers, top):
    answers["verdict"] = "b"
    study, outcome = searched(tmp_path)
    assert names(study)[:2] == BEST[1::-1]
    assert outcome.best.candidate == BEST[1]
    assert elected(study.store, top)["layers"] == BEST[1]


@each_of(
    ("run", "changes", "voters"),
    [(fails, {}, (8, 7, 6, 5)), (cannot_decode, {"objective": "decode_tokens_per_s"}, (5, 6, 7))],
)
def test_a_candidate_that_is_lost_or_without_the_objective_does_not_make_bad_ones_vote(
    tmp_path, run, changes, voters
):
    study, _ = searched(tmp_path, run=partial(run, NAMES[9]), prune=False, pairs=0, **changes)
    voted = [voter["layers"] for voter in elected(study.store)["voters"]]
    assert voted == [NAMES[k] for k in voters]


def test_a_sampler_learns_the_objective_on_the_first_rung(tmp_path):
    study, _ = searched(tmp_path, objective="decode_tokens_per_s", pairs=0, sampler="evolution")
    learned = [one.score for one in study.store.proposals() if one.score is not None]
    assert len(set(learned)) == 6
    assert min(learned) > OUT


def test_a_run_has_its_folder_in_the_study_and_a_session_empties_what_a_killed_one_left(
    tmp_path, monkeypatch
):
    study = replace(STUDY, n_candidates=2, pairs=0, prune=False)
    store = open_store(study, tmp_path, "s")
    (store.directory / "running" / "left").mkdir(parents=True)
    (store.directory / "running" / "left" / "weights").write_text("of a run")
    monkeypatch.setattr(session.text, "train_any", placed)
    session.execute(store, study, ExecutionConfig(parallel=1))
    reasons = {one.reason for one in store.records()}
    assert reasons == {f"{store.directory / 'running'} []"}


def test_a_study_is_named_as_commands_find_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, word in (("studies/one", "one"), ("my studies/one", "'my studies/one'")):
        assert Store(tmp_path / path).word == word


def test_tasks_beside_text_have_the_recipe_and_the_width_of_their_suite():
    study = StudyDefinition(candidates=("swiglu",), suite="lm:9000tok+smoke", tasks=("depo",))
    text_run, depo = study.runs("swiglu")
    (smoke,) = StudyDefinition(candidates=("swiglu",), suite="smoke", tasks=("depo",)).runs(
        "swiglu"
    )
    assert (text_run.task, text_run.recipe.batch_size) == (TEXT_TASK, 4)
    assert (depo.task, depo.recipe, depo.dim) == ("depo", smoke.recipe, smoke.dim)


def test_a_study_that_stops_anywhere_ends_with_the_same_leaderboard(tmp_path, monkeypatch):
    whole, _ = searched(tmp_path, "whole")
    for n in (0, 3, 6, 7, None):
        cut, outcome = searched(tmp_path, "cut", n, monkeypatch, parallel=1)
        assert n is None or len(cut.store.records()) == n
    assert outcome.status == "done"

    def content(study):
        return [{**vars(row), "seconds": 0, "best": ()} for row in study]

    assert content(cut) == content(whole)


def test_limits_put_candidates_last_and_an_objective_orders_them(tmp_path):
    study, _ = searched(tmp_path, limit=("decode_tokens_per_s >= 600",))
    assert names(study)[:2] == BEST[1:3]
    assert [row.beyond for row in study][2:] == [()] * 2 + [("decode_tokens_per_s >= 600",)] * 2
    study, outcome = searched(tmp_path, "fast", objective="decode_tokens_per_s", pairs=0)
    assert names(study) == [*NAMES.values()]
    assert outcome.best.selection_score == 750


def test_the_front_has_the_candidates_that_no_other_beats(tmp_path):
    study, _ = searched(tmp_path, prune=False)
    worse = NAMES[10]  # slower and larger than all, and not the best
    assert pareto(study) == BITS.keys() - {worse}
    flags = {one["layers"]: one["pareto"] for one in study.leaderboard().to_json()["candidates"]}
    assert [name for name, is_on in flags.items() if not is_on] == [worse]


def test_text_beside_tasks_is_ordered_by_the_mean_of_two_ranks(tmp_path):
    study, _ = searched(
        tmp_path, suite="lm:9000tok+smoke", tasks=("memorization",), prune=False, n_candidates=3,
        pairs=0,
    )  # fmt: skip
    rows = [*study]
    assert {frozenset(row.tasks) for row in rows} == {frozenset({TEXT_TASK, "memorization"})}
    # tasks rank in the other direction than bits per byte: the mean ranks are equal
    assert names(study) == [NAMES[k] for k in (7, 6, 5)]
    other = [
        replace(row, tasks={**row.tasks, "memorization": 0.1 * n}) for n, row in enumerate(rows)
    ]
    limit = ordered(other[:1] + other[2:], "val_bits_per_byte", [], select=False)
    assert [row.candidate for row in limit] == [rows[0].candidate, rows[2].candidate]
    higher = [replace(rows[0], tasks={**rows[0].tasks, "memorization": 0.9}), *other[1:]]
    assert ordered(higher, "val_bits_per_byte", [], select=False)[0].candidate == names(study)[0]


@each_of("dim", [64, 100])
def test_equal_parameters_change_the_widths_by_a_step_but_that_of_the_first(dim):
    lines = ("gated-conv swiglu", "gated-conv swiglu gated-conv swiglu")
    study = StudyDefinition(candidates=lines, suite="lm:2ktok", equal="parameters", dim=dim)
    widths = [study.runs(line)[0].dim for line in lines]
    sizes = [params(at_width(parse(line), d), d) for line, d in zip(lines, widths, strict=True)]
    assert widths[0] == dim > widths[1]
    assert widths[1] % text.WIDTH_STEP == 0
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_equal_step_time_is_a_width_for_which_gradients_take_as_long(tmp_path, monkeypatch):
    study = StudyDefinition(
        candidates=("gated-conv swiglu", "mlstm(h1) swiglu"), suite="lm:2ktok", dim=64,
        equal="step-time",
    )  # fmt: skip
    (run,) = study.runs("mlstm(h1) swiglu")
    assert run.settings["like"] == "gated-conv swiglu"
    (first,) = study.runs(study.first)
    assert (first.dim, first.settings["like"]) == (64, "")  # whose time the others have
    seconds = {}

    def warm_up(lane, plan, rank, sequences, limit_s):
        seconds["now"] = plan.model.hidden_size**2 * (
            4 if plan.model.layers[0].name == "mlstm" else 1
        )

    monkeypatch.setattr(text, "warm_up", warm_up)
    monkeypatch.setattr(text, "gradient_times", lambda *_: (1, [seconds["now"]]))
    assert text._width(run, tmp_path) == 32
    (later,) = study.runs("mlstm(h1) swiglu", 0, dim=32)
    assert (later.dim, later.settings["like"]) == (32, "")


# -- bad input -------------------------------------------------------------------------------------


LM = "--data text.txt --suite lm:2ktok --candidates 2"


@each_of(
    ("words", "message"),
    [
        ("--suite lm:soon", "suite lm:soon has no budget of a run; give time or tokens"),
        ("--suite lm:0s", "suite lm:0s has no budget"),
        ("--suite lm:", "suite lm: has no budget"),
        ("--suite lm:1s+lite", "suite lite sweeps 2 optimizer points"),
        ("--suite lm:1s+lm:2s", "mix lm and one suite of tasks, in this order"),
        ("--suite smoke+lm:1s", "mix lm and one suite of tasks, in this order"),
        ("--suite lm:1s+smoke+recall", "suite lm:1s+smoke+recall mixes lm:1s, smoke, recall"),
        (f"{LM} --tasks M", "--tasks has memorization, which suite lm:2ktok lacks; mix it"),
        ("--suite smoke --pairs 4", "--pairs is 4, and the final compares bits per byte"),
        (f"{LM} --objective params --pairs 4", "--pairs is 4, and the final compares bits"),
        (f"{LM} --equal step-time --seeds 2", "of a candidate would train different models"),
        (f"{LM} --equal step-time --rates 1e-3,2e-3", "of a candidate would train different"),
        ("--data text.txt --suite lm:2s --parallel 999", "would share cores"),
        ("--data text.txt --suite lm:2Mtok", "text.txt is too short: it has"),
        ("--data text.txt short.txt --suite lm:2Mtok", "text.txt, short.txt is too short"),
        ("--data short.txt --suite lm:2ktok", "short"),
        ("--data nothing.txt --suite lm:2ktok", "nothing.txt"),
        ("--suite smoke --data text.txt", "--data is for --suite lm, not smoke; leave it out"),
        ("--suite smoke --candidates 4", "--candidates is for --suite lm"),
        ("--suite smoke --objective decode_tokens_per_s", "; --suite lm:60s measures it"),
        (f"{LM} --limit 'warmth >= 3'", "does not measure warmth; it measures score"),
        (f"{LM} --limit 'params > 3'", "give a name, >= or <=, and a number"),
        (f"{LM} --pairs 1", "--pairs is 1; give 2 or more, or 0 for no final"),
        ("--tasks LM", "--tasks has language-modeling; it is suite lm"),
        (f"{LM} --budget 4", "suite lm has --candidates"),
        (f"{LM} --steps 4", "--steps is for tasks"),
        (f"{LM} --share-embedding", "--share-embedding is for tasks"),
        ("--data text.txt --suite lm:2ktok+smoke --rates 1e-3,2e-3", "--rates is for one suite"),
        (
            "--data text.txt --suite lm:2ktok --space large.yaml",
            "candidates of this space are not counted; give --candidates",
        ),
    ],
)
@pytest.mark.usefixtures("here")
def test_wrong_input_is_one_sentence_and_begins_no_study(words, message, capsys):
    assert main(["mad", "search", *shlex.split(words)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("studies").exists()


def test_several_files_are_one_text_in_python(here):
    Path("more.txt").write_text("Other words are here, too. " * 400)
    with pytest.raises(ConfigError, match=r"^text\.txt, more\.txt is too short"):
        mad.bench("swiglu", suite="lm:2Mtok", data=["text.txt", "more.txt"])


def test_a_bench_has_a_name_of_its_own(here, capsys):
    words = "mad bench --layers swiglu --suite lm:2ktok --data text.txt --dry-run"
    assert told(capsys, *words.split())["study"].startswith("bench-lm-2ktok-")
    assert parse_limit("decode_tokens_per_s >= 2k").bound == 2000
    assert parse_limit("val_bits_per_byte <= 2.5").bound == 2.5


def begun(here, name="t", **changes):
    config = text.read_text("text.txt", 1, None).corpus_sha256
    study = replace(STUDY, data="text.txt", text=config, machine=text.machine_text(), **changes)
    open_store(study, here / "studies", name)
    return study


def test_a_study_of_another_text_or_machine_is_refused(here, capsys, monkeypatch):
    study = begun(here)
    plan = told(capsys, "mad", "resume", "t", "--dry-run")
    assert (plan["rungs"], plan["pairs"]) == ([6, 2], 6)
    Path("text.txt").write_text("Other text, also without a wait. " * 400)
    assert main("mad resume t --dry-run".split()) == 2
    assert "text.txt is another text than that of the study's runs" in capsys.readouterr().err
    Path("text.txt").write_text("Lock free adds never wait. " * 400)
    monkeypatch.setattr("mlxhog.mad.study.definition.machine_text", lambda: "M9, 4 cores")
    assert main("mad resume t --dry-run".split()) == 2
    assert "and this is M9, 4 cores, where times differ" in " ".join(
        capsys.readouterr().err.split()
    )
    (run,) = study.runs(study.first)
    monkeypatch.setattr(text, "machine_text", lambda: "M9, 4 cores")
    with pytest.raises(EnvironmentLacks, match="this is M9, 4 cores; run it there"):
        text.train(run)  # as on another machine of a cluster


def test_language_models_with_a_budget_of_time_have_a_gpu_for_themselves(here, monkeypatch):
    monkeypatch.setattr(session, "resolve_workers", lambda *of, **how: None)
    timed, counted = (
        begun(here, suite[3:], suite=suite, workers="mlx:gpu") for suite in ("lm:1s", "lm:2ktok")
    )
    defaults = [session.check_execution(ExecutionConfig(), study) for study in (timed, counted)]
    assert defaults == [1, session.GPU_CANDIDATES]
    two = ExecutionConfig(parallel=2)
    assert session.check_execution(two, counted) == 2
    with pytest.raises(ConfigError, match="one GPU is enough for 1 at once.*give --parallel 1"):
        session.check_execution(two, timed)


def test_ray_on_this_machine_has_no_more_cores_than_it(here, monkeypatch):
    monkeypatch.setattr(session.ray, "check", lambda: None)
    study = begun(here, suite="lm:1s")
    with pytest.raises(ConfigError, match="would share cores"):
        session.check_execution(ExecutionConfig(parallel=999, executor="ray"), study)
    cluster = ExecutionConfig(parallel=999, executor="ray", ray_address="auto")
    assert session.check_execution(cluster, study) == 999


def test_a_run_that_diverges_says_why(here, monkeypatch):
    def diverged(config):
        return SimpleNamespace(
            status="diverged", steps=1, tokens=1024, tokens_per_s=9.0, workers=(), val_loss=None,
            error="3 gradients in a row are not finite;\nlower --lr",
        )  # fmt: skip

    monkeypatch.setattr(text.runs, "train", diverged)
    study = begun(here)
    record = text.train(study.runs(study.first)[0])
    assert (record.status, record.measures["val_bits_per_byte"]) == ("diverged", 8)
    assert record.reason == "3 gradients in a row are not finite; lower --lr"


# -- trained runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_measures_its_model_and_a_broken_decoder_or_a_divergence_is_a_sentence(
    here, monkeypatch
):
    study = begun(here, suite="lm:2048tok", prune=False)
    (run,) = study.runs(study.first)
    record = text.train(run)
    assert (record.status, record.steps, record.key) == ("done", 2, run.key())
    assert 0 < record.measures["val_bits_per_byte"] < 8
    assert record.acc_macro == score_of(record.measures["val_bits_per_byte"])
    assert all(record.measures[name] > 0 for name in OBJECTIVES if name in record.measures)
    assert record.measures["state_bytes"] == 4 * record.state

    def broken(engine, length):
        raise NotImplementedError("no state")

    monkeypatch.setattr(text, "_decoding", broken)
    other = text.train(run)
    assert other.reason == "it cannot decode: NotImplementedError: no state"
    assert "decode_tokens_per_s" not in other.measures
    row = study.score_of([other])
    assert not parse_limit("decode_tokens_per_s >= 1").is_kept(row)

    def infinite(*of):
        return np.array([np.inf]), np.array([1])

    monkeypatch.setattr(text, "losses", infinite)
    lost = text.train(run)
    assert (lost.status, lost.measures["val_bits_per_byte"], lost.acc_macro) == ("diverged", 8, 0)
    assert lost.reason == "the validation loss of its last weights is not finite"


@pytest.mark.slow
@pytest.mark.usefixtures("here", "spawned_workers")
def test_a_search_of_two_is_trained_compared_and_shown(capsys, monkeypatch):
    monkeypatch.setattr(final, "compare", REAL)
    Path("space.yaml").write_text(
        "space: {depth: 2, mixers: [gated-conv, linear-attention], channels: [swiglu]}\n"
    )
    words = f"--space space.yaml {LM} --dim 16 --parallel 2 --pairs 2 --study t --quiet"
    assert told(capsys, "mad", "search", *words.split())["runs"]["done"] == 2
    ranking = told(capsys, "mad", "leaderboard", "t")
    assert ranking["final"]["pairs_used"] == 2
    assert json.loads(plain_json.dumps(mad.leaderboard("t").to_json())) == ranking
    assert main("mad leaderboard t".split()) == 0
    out = capsys.readouterr().out
    assert "bits/byte" in out
    assert "final of A #" in out
