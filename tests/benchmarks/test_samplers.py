"""A recorded surface, and the replays of samplers and of successive halving on it."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mlxhog.errors import StudyError
from mlxhog.files import plain_json
from mlxhog.mad.run import Point, RunConfig, RunResult
from mlxhog.mad.search.pruning import Rungs
from mlxhog.mad.search.samplers import SAMPLERS
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.store import Store, StudyRecord, create
from mlxhog.mad.study.study import Study
from mlxhog.models.mad.sequence import canonical

TASKS = ("in-context-recall", "selective-copying", "compression")
STEPS = 300
STUDY = Study(
    space=to_space(
        {
            "depth": 4,
            "mixers": [{"type": "gated-conv", "kernel": [1, 2, 3, 4, 5]}],
            "channels": ["swiglu"],
        }
    ).to_dict(),
    tasks=TASKS,
    protocol={"steps": STEPS, "eval_every": 15},
    seeds=(0, 1),
    dim=16,
)
"""25 candidates."""

Curve = Callable[[RunConfig], Callable[[int], float]]


def worth(run: RunConfig) -> float:
    """Best for the kernels 5 and 4, and a little else for every seed and task."""
    kernels = [getattr(layer, "kernel", 0) for layer in run.layers[::2]]
    noise = Random(f"{run.candidate} {run.task} {run.seed}").uniform(0, 0.01)
    return kernels[0] / 10 + kernels[1] / 12 - 0.15 * (kernels[0] == kernels[1]) + noise


def straight(run: RunConfig) -> Callable[[int], float]:
    """A curve that shows its end from the beginning."""
    return lambda step: worth(run) * (step / STEPS) ** 0.1


def late(run: RunConfig) -> Callable[[int], float]:
    """The curve of the best candidate is the lowest until its last evaluation."""
    best = run.candidate.startswith("gated-conv(kernel=5) swiglu gated-conv(kernel=4)")
    return (lambda step: worth(run) * (step == STEPS)) if best else straight(run)


def record(folder: Path, curve: Curve = straight, *, runs: int = 10**6) -> Store:
    """A study with the given curves."""
    store, planning = create(folder, "made", STUDY.to_dict()), Planning(STUDY)
    candidates = iter(planning.sampler().ask, None)
    every = [run for layers in candidates for run in planning.runs(canonical(layers))]
    for run in every[:runs]:
        points = tuple(
            Point(
                step=step, seconds=step / 100, loss=1.0, acc_token=0.0, acc_macro=curve(run)(step)
            )
            for step in range(15, STEPS + 1, 15)
        )
        result = RunResult(
            status="done", steps=STEPS, seconds=3.0, loss=1.0, acc_token=0.0,
            acc_macro=points[-1].acc_macro,
        )  # fmt: skip
        ended = StudyRecord.of(run, result, "")
        store.append(ended, points)
    return store


@pytest.fixture(scope="module")
def surfaces(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("mad.surface")


@pytest.fixture(scope="module")
def samplers(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("samplers")


@pytest.fixture(scope="module")
def path(surfaces: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surface")
    surfaces.write(record(folder), folder / "surface.json.xz")
    return folder / "surface.json.xz"


@pytest.fixture(scope="module")
def surface(surfaces: ModuleType, path: Path) -> Any:
    return surfaces.load(path)


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a surface with another content."""
    content = plain_json.loads(lzma.decompress(path.read_bytes()))
    change(content)
    target.write_bytes(lzma.compress(plain_json.dumps(content)))
    return target


@pytest.mark.slow
def test_a_surface_has_the_scores_that_the_study_gave_its_sampler(surface: Any, path: Path) -> None:
    records = Store(path.parent / "made").records()
    for seed, scores in zip(surface.seeds, surface.scores(), strict=True):
        judge = Planning(replace(STUDY, seeds=(seed,))).judge
        for candidate, score in zip(surface.runs, scores, strict=True):
            own = [one for one in records if one.candidate == candidate and one.seed == seed]
            assert score == pytest.approx(judge(own).score, abs=1e-4)
    assert len(surface.runs) == 25


@pytest.mark.slow
def test_an_edited_surface_is_refused_by_its_digest(
    surfaces: ModuleType, path: Path, tmp_path: Path
) -> None:
    def change(content: dict[str, Any]) -> None:
        next(iter(content["candidates"].values()))[0][1] = 0.99

    with pytest.raises(StudyError, match=r"made\.xz was edited.*mad_surface.py record$"):
        surfaces.load(edited(path, tmp_path / "made.xz", change))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("format", 0, "format 0, this program 1"),
        ("generator", "0.1", "version of the tasks' generators '0.1'"),
        ("suite", {"dim": 8}, "another suite smoke: its name, settings, .*dim differ"),
    ],
)
def test_a_surface_of_another_version_or_suite_is_refused_by_name(
    surfaces: ModuleType, path: Path, tmp_path: Path, name: str, value: object, named: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["digest"]
        content[name] = value
        content["digest"] = surfaces._digest(content)

    with pytest.raises(StudyError, match=named):
        surfaces.load(edited(path, tmp_path / "made.xz", change))


@pytest.mark.slow
def test_a_file_that_is_no_surface_is_refused(surfaces: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "made.xz"
    with pytest.raises(StudyError, match=r"made\.xz cannot be read: No such file or directory; "):
        surfaces.load(file)
    for content in (b"x", lzma.compress(b"[1]"), lzma.compress(b"{")):
        file.write_bytes(content)
        with pytest.raises(StudyError, match=r"made\.xz .*surface"):
            surfaces.load(file)


@pytest.mark.slow
def test_an_unfinished_study_is_not_written(surfaces: ModuleType, tmp_path: Path) -> None:
    store = record(tmp_path, runs=7)
    with pytest.raises(StudyError, match="7 of 150 runs; the same command continues"):
        surfaces.write(store, tmp_path / "surface.json.xz")


@pytest.mark.slow
def test_some_tasks_of_a_surface_are_a_surface(surface: Any) -> None:
    part = surface.only(["compression"])
    assert part.tasks == ("compression",)
    ((run, _), *_) = part.runs.values()
    assert part.scores()[0][0] == run.record.acc_macro
    with pytest.raises(StudyError, match="no task 'memorization'; it has in-context-recall, "):
        surface.only(["memorization"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAMPLERS, "optuna"])
def test_a_replay_makes_the_proposals_of_the_sampler(
    samplers: ModuleType, surface: Any, name: str
) -> None:
    scores = surface.scores()
    replays = samplers.play(surface, name, scores, 2, first=5)
    candidates = list(surface.runs)
    for seen, seed, order in zip(scores, (5, 6), replays.orders, strict=True):
        sampler = samplers.sampler_of(surface, name, seed)
        assert len(set(order)) == len(order)
        for number in order:
            layers = sampler.ask()
            assert canonical(layers) == candidates[number]
            sampler.tell(layers, float(seen[number]))


@pytest.mark.slow
def test_regret_and_the_needed_proposals_are_those_counted_by_hand(samplers: ModuleType) -> None:
    scores = np.array([[0.1, 0.4, 0.9, 0.5], [0.8, 0.3, 0.2, 0.1]])
    replays = samplers.Replays([[1, 3, 2, 0], [1, 0, 2, 3]], scores)
    assert replays.regret(2) == pytest.approx([0.4, 0.0])
    assert replays.needed(0.25) == pytest.approx([3, 2])
    assert replays.needed(0.5) == pytest.approx([2, 1])
    assert replays.kept(1) == pytest.approx([0.8 - 0.3, 0.9 - 0.4])


@pytest.mark.slow
def test_random_draws_need_as_many_proposals_as_the_hypergeometric_mean(
    samplers: ModuleType, surface: Any
) -> None:
    needed = samplers.play(surface, "random", surface.scores(), 200).needed(0.05)  # 2 of 25
    mean = samplers.Mean.of(needed)
    assert mean.low < 26 / 3 < mean.high


@pytest.mark.slow
def test_holm_multiplies_each_p_value_by_the_number_of_those_not_smaller(
    samplers: ModuleType,
) -> None:
    assert samplers.holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert samplers.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


@pytest.mark.slow
def test_equal_samplers_are_rarely_told_apart_and_a_clear_gain_always(samplers: ModuleType) -> None:
    rng = np.random.default_rng(0)
    equal = [samplers.p_value(rng.normal(size=30)) for _ in range(60)]
    assert 0 < sum(p < 0.2 for p in equal) < 24
    clear = rng.normal(-1, 1, size=30)
    assert samplers.verdict(clear, samplers.p_value(clear)) == "better"
    assert samplers.verdict(-clear, samplers.p_value(-clear)) == "worse"
    assert samplers.verdict(clear, 0.05) == "cannot be told"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_report_compares_every_sampler_and_cannot_tell_random_from_random(
    samplers: ModuleType, surface: Any, seeds: tuple[int, ...]
) -> None:
    findings = samplers.Findings()
    samplers.replay_samplers(findings, replace(surface, study=replace(STUDY, seeds=seeds)), 10)
    assert [claim.met for claim in findings.claims] == [True]
    rows = findings.results["samplers"]
    assert set(rows) == {"random", *samplers.ARMS}
    assert rows["evolution"]["regret at 20"]["verdict"] in ("better", "worse", "cannot be told")
    assert set(findings.results["tpe beside optuna"]) == set(rows["tpe"]) - {"kept"}
    assert ("kept" in rows["tpe"]) == (len(seeds) > 1)


@pytest.fixture(scope="module")
def halving(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("mad.halving")


def replayed(halving: ModuleType, surface: Any, rungs: Rungs) -> Any:
    """A search whose best candidate is the last."""
    order = np.argsort(surface.scores()[0])
    candidates = [list(surface.runs)[number] for number in order]
    Random(1).shuffle(rest := candidates[:-1])
    return halving.HalvingReplay(surface, rungs, 0).search([*rest, candidates[-1]])


def rungs_of(halving: ModuleType, study: Study, eta: int) -> Any:
    planning = Planning(study)
    return halving.rungs_of(planning.runs(planning.first), eta)


@pytest.mark.slow
def test_rungs_are_earlier_in_proportion_to_shorter_runs(halving: ModuleType) -> None:
    rungs = rungs_of(halving, STUDY, 2)
    assert (rungs.eta, rungs.first, rungs.first_of_sudden) == (2, 45, 150)  # 300 of 2,000 steps


@pytest.mark.slow
def test_every_rung_of_a_halving_is_an_evaluation_of_the_recorded_surface(
    load: Callable[[str], ModuleType], halving: ModuleType, samplers: ModuleType
) -> None:
    study = load("mad_surface").study_of(quick=False)
    planning = Planning(study)
    assert 280 <= planning.candidates <= 330
    for eta in samplers.ETAS:
        rungs = rungs_of(halving, study, eta)
        steps = {step for run in planning.runs(planning.first) for step in rungs.of(run)}
        assert steps
        assert not [step for step in steps if step % study.protocol["eval_every"]]


@pytest.mark.slow
def test_halving_without_a_rung_saves_and_loses_nothing(halving: ModuleType, surface: Any) -> None:
    ended = replayed(halving, surface, Rungs(first=STEPS, first_of_sudden=STEPS))
    assert (ended.saved_time, ended.saved_steps, ended.lost_score, ended.pruned) == (0, 0, 0, 0)


@pytest.mark.slow
def test_halving_keeps_a_best_candidate_that_shows_early(halving: ModuleType, surface: Any) -> None:
    ended = replayed(halving, surface, rungs_of(halving, STUDY, 3))
    assert ended.lost_score == 0
    assert 0.3 < ended.pruned < 0.9
    # A run of recall is trained at least to 150 of 300 steps, and it is the first of three tasks.
    assert 0.1 < ended.saved_steps < 5 / 6
    assert ended.saved_time == pytest.approx(ended.saved_steps)


@pytest.mark.slow
def test_halving_loses_a_best_candidate_that_shows_late(
    surfaces: ModuleType, halving: ModuleType, tmp_path: Path
) -> None:
    surfaces.write(record(tmp_path, late), tmp_path / "surface.json.xz")
    surface = surfaces.load(tmp_path / "surface.json.xz")
    best, second = np.sort(surface.scores()[0])[:-3:-1]
    ended = replayed(halving, surface, rungs_of(halving, STUDY, 3))
    assert ended.lost_score == pytest.approx(best - second)
