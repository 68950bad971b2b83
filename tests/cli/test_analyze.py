"""`mlxhog research analyze` and `mlxhog research advise` through the real commands: measured once,
shown in ways."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from mlxhog.base.load import Load, LoadWatch
from mlxhog.cli import main
from mlxhog.research import advise
from mlxhog.research.analysis import analyze
from tests.cli.command import said, told
from tests.processes import alive, below
from tests.threads import wait_until
from tests.training.small import small_config
from tests.words import changed

SMALL = ["--seq-len", "32", "--batch-size", "2", "--threads", "1"]
LOOK = ["--samples", "12", "--batches", "40", *SMALL, "--backend", "mlx:cpu"]
TRY = ["--measure", "300ms", "--samples", "12", *SMALL, "--workers", "mlx:cpu*2"]
QUIET, BUSY = Load(0.0, 2, 0.4), Load(1.8, 2, 9.3)


def words_of(folder):
    """The arguments for a small model and its text."""
    config = small_config(folder)
    return [config.model, "--data", config.data, "--runs-dir", str(folder / "runs")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The arguments, the facts of an analysis, and those of advice with the profile behind it."""
    folder, kept = tmp_path_factory.mktemp("measured"), []
    words, profile_of = words_of(folder), advise.measured_profile

    def profile(*arguments):
        kept.append(profile_of(*arguments))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advise, "measured_profile", profile)
        patch.setattr(LoadWatch, "look", lambda watch: QUIET)
        patch.setattr(advise, "TRY_S", 1.0)
        for line in (["research", "analyze", *words, *LOOK, "--time", "0.5"],
                     ["research", "advise", *words, *TRY]):  # fmt: skip
            with redirect_stdout(io.StringIO()) as out:
                assert main([*line, "--json"]) == 0
            kept.append(json.loads(out.getvalue()))
    analysis, profile, advice = kept
    assert list((folder / "runs").glob("*")) == []  # they leave no run behind
    return words, analysis, advice, profile


@pytest.mark.slow
def test_an_analysis_has_blocks_staleness_bounds_and_advice(measured):
    _, facts, *_ = measured
    sparse = {block["name"]: block["row_sparse"] for block in facts["blocks"]}
    assert sparse == {"embedding": True, "layer 0": False, "out_norm": False, "head": False}
    head = facts["blocks"][-1]
    assert head["omega"] == head["parameters"] == 320 * 32
    assert head["rho"] == head["delta"] == head["p_conf"] == 1
    staleness = facts["staleness"]
    source = [staleness[name] for name in ("source", "workers", "write")]
    assert (facts["backend"], source) == ("mlx:cpu", ["probe", 2, "racy"])
    assert 0 <= staleness["lost_update_rate"] < 1
    assert not any(bound["applies"] for bound in facts["bounds"] if bound["block"] == "head")
    names = {bound["name"] for bound in facts["bounds"]}
    assert {"proposition 4.1", "n^(1/4)", "perturbed iterate"} <= names
    assert {"write", "workers"} <= {one["topic"] for one in facts["advice"]}
    assert facts["embedding"]["batches"] == 40


@pytest.mark.slow
def test_the_answer_comes_first_and_the_tables_with_verbose(measured, monkeypatch, capsys):
    words, facts, *_ = measured
    monkeypatch.setattr(analyze, "analyze", lambda *_: facts)
    shown = []
    for more in ([], ["--verbose"]):
        shown.append(said(capsys, "research", "analyze", *words, *LOOK, *more).out)
        lines = shown[-1].replace(words[0], "").splitlines()
        assert lines[0] == facts["answer"]
        assert max(map(len, lines)) <= 100
        assert "- write: apply updates losslessly" in shown[-1]
    assert shown[0].count("\n") < 30
    for text in (
        "do two updates overlap? rows",
        "because",
        f"bounds are for a staleness of {facts['assumed_staleness']['largest']:g}",
        "loss of a neural network is not strongly convex, so there is no bound",
        "sparse gradients: does not hold",
    ):
        assert [text in " ".join(one.split()) for one in shown] == [False, True]


@pytest.mark.slow
def test_a_run_is_analyzed_at_its_checkpoint_with_the_staleness_it_recorded(tmp_path, capsys):
    spec, *how = words_of(tmp_path)
    never = ["--eval-every", "off", "--sample-every", "off"]
    train = ["--steps", "60", "--workers", "mlx:cpu*2", *SMALL, *never]
    result = told(capsys, "train", "--model", spec, *how, *train)
    backend = ["--samples", "12", "--batches", "40", "--backend", "mlx:cpu"]
    facts = told(capsys, "research", "analyze", "latest", "--runs-dir", how[-1], *backend)
    assert facts["at"] == result["checkpoint"]
    assert facts["staleness"]["source"] == "run"
    assert facts["staleness"]["histogram"] == result["staleness"]
    assumed = {"largest": max(map(int, result["staleness"])), "measured": True}
    assert facts["assumed_staleness"] == facts["assumed_staleness"] | assumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begin", "number"),
    [
        ("research analyze", "gradients", signal.SIGINT),
        ("research analyze", "gradients", signal.SIGKILL),
        ("parity", "numpy", signal.SIGTERM),
    ],
)
def test_a_signal_ends_a_command_and_leaves_no_process_and_no_file(tmp_path, name, begin, number):
    words = ["7to1-tiny", "--steps", "200"]
    if name == "research analyze":
        words = [*words_of(tmp_path), "--time", "0", *changed(LOOK, "--samples", "100k")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "mlxhog", *name.split(), *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:  # fmt: skip
        while begin not in process.stderr.readline():
            assert process.poll() is None
        children = below(process.pid)
        assert children or name == "parity"
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=120)
    wait_until(lambda: not any(map(alive, children)))
    if number == signal.SIGKILL:
        return
    assert process.returncode == 130
    assert "interrupted" in err
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_advice_is_measured_tried_and_explained(measured):
    _, _, advice, _ = measured
    assert advice["answer"].startswith(f"{advice['chosen']}: mlxhog train --strategy ")
    assert advice["because"]
    profile, trial = advice["profile"], advice["trial"]
    assert len(profile["workers"]) == 2
    for one in profile["workers"]:  # a worker that was once held up has a mean above its p99
        assert 0 < one["min_s"] <= min(one["mean_s"], one["p99_s"])
    assert profile["sync_s"] >= 0
    assert 0 < profile["p_conf"] <= 1
    assert len(advice["expected"]) >= 4
    assert {trial["winner"]} <= set(trial["names"]) <= {one["name"] for one in advice["expected"]}
    assert min(trial["steps"]) >= 4
    assert all(0 < bits < 9 for bits in trial["bits_per_byte"])


@pytest.mark.slow
@pytest.mark.parametrize("load", [QUIET, BUSY])
def test_without_a_trial_rules_answer_or_guess_if_busy(measured, monkeypatch, capsys, load):
    def profile(target, options, tell):
        for part in ("lock-free", "one worker", "synchronous", "gradients", "gradients"):
            tell(part, "12 steps")
        return measured[-1]

    monkeypatch.setattr(advise, "measured_profile", profile)
    monkeypatch.setattr(LoadWatch, "look", lambda watch: load)
    out, err = said(capsys, "research", "advise", *measured[0], *TRY, "--no-trial")
    assert max(map(len, out.splitlines())) <= 100
    assert "mlxhog train --strategy" in " ".join(out.split()).partition("why")[0]
    for text in ("what would change it", "predicted", "measured", "barrier and average"):
        assert text in " ".join(out.split()), "lines end anywhere"
    assert err.splitlines()[-2:] == ["3 of 4: synchronous ...", "4 of 4: gradients ..."]
    busy = "inconclusive: busy machine (load average 9.3 on 2 processors); best guess: "
    assert out.startswith(busy) == (load is BUSY)
