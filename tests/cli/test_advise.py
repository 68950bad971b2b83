"""`mlxhog advise` through the real command: measurement, trial, explanation."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlxhog.base.load import Load, LoadWatch
from mlxhog.cli import main
from mlxhog.theory.advisor import advise
from mlxhog.theory.advisor.profile import Profile
from tests.training.small import small_config


def words_of(folder):
    """The arguments for a small model, its text and workers."""
    config = small_config(folder)
    small = ["--seq-len", "32", "--batch-size", "2", "--threads", "1", "--workers", "mlx:cpu*2"]
    return [config.model, "--data", config.data, "--out", str(folder / "runs"), *small]


@pytest.fixture
def words(tmp_path):
    """Those arguments."""
    return words_of(tmp_path)


QUIET, BUSY = Load(0.0, 2, 0.4), Load(1.8, 2, 9.3)
QUICK = ["--measure", "300ms", "--samples", "12"]


@dataclass
class Advised:
    """A folder, what `advise --json` printed there, and the profile that it measured."""

    folder: Path
    found: Any
    profile: Profile


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """Advice with a trial."""
    folder, profiles, out = tmp_path_factory.mktemp("advised"), list[Profile](), io.StringIO()
    measured_profile = advise.measured_profile

    def kept(*arguments):
        profiles.append(measured_profile(*arguments))
        return profiles[-1]

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(advise, "measured_profile", kept)
        patch.setattr(LoadWatch, "look", lambda watch: QUIET)
        assert main(["advise", *words_of(folder), *QUICK, "--try", "1", "--json"]) == 0
    return Advised(folder, json.loads(out.getvalue()), profiles[0])


@pytest.mark.slow
def test_advice_is_measured_tried_and_explained(advised):
    advice = advised.found
    assert advice["answer"].startswith(f"{advice['chosen']}: mlxhog train --strategy ")
    assert advice["because"]
    profile, trial = advice["profile"], advice["trial"]
    assert len(profile["workers"]) == 2
    assert all(0 < one["min_s"] <= one["mean_s"] <= one["p99_s"] for one in profile["workers"])
    assert profile["sync_s"] >= 0
    assert 0 < profile["p_conf"] <= 1
    assert len(advice["expected"]) >= 4
    assert set(trial["names"]) <= {one["name"] for one in advice["expected"]}
    assert trial["winner"] in trial["names"]
    assert min(trial["steps"]) >= 4
    assert all(0 < bits < 9 for bits in trial["bits_per_byte"])
    assert list((advised.folder / "runs").glob("*")) == []  # it leaves no run behind


@pytest.mark.slow
def test_without_a_trial_only_the_rules_answer_first_and_in_80_columns(
    words, advised, monkeypatch, capsys
):
    monkeypatch.setattr(advise, "measured_profile", lambda *_: advised.profile)
    monkeypatch.setattr(LoadWatch, "look", lambda watch: QUIET)
    assert main(["advise", *words, *QUICK, "--no-try"]) == 0
    text = capsys.readouterr().out
    assert "mlxhog train --strategy" in text.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 100
    for message in ("why", "what would change it", "predicted", "measured", "barrier and average"):
        assert message in text


@pytest.mark.slow
def test_beside_other_programs_the_answer_is_that_it_cannot_be_told_and_a_guess(
    words, advised, monkeypatch, capsys
):
    def measured(target, options, tell):
        for part in ("lock-free", "one worker", "in rounds", "gradients", "gradients"):
            tell(part, "12 steps")
        return advised.profile

    monkeypatch.setattr(advise, "measured_profile", measured)
    monkeypatch.setattr(LoadWatch, "look", lambda watch: BUSY)
    assert main(["advise", *words, *QUICK, "--no-try"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("cannot be told: busy machine (load average 9.3 on 2 processors), run")
    assert "mlxhog train --strategy" in " ".join(out.split())
    assert err.splitlines()[-2:] == ["3 of 4: in rounds ...", "4 of 4: gradients ..."]
