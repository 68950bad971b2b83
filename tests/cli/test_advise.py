"""`mlxhog advise` as a user meets it: measured, tried, explained, remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.theory.advisor import history
from tests.training.small import small_config

pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that name a small model, its text and workers; a history of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = small_config(tmp_path)
    small = ["--seq-len", "32", "--batch-size", "2", "--threads", "1", "--workers", "mlx:cpu*2"]
    return [config.model, "--data", config.data, "--out", str(tmp_path / "runs"), *small]


def test_advice_is_measured_tried_explained_and_remembered(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--measure", "1", "--samples", "12", "--try", "4"]
    assert main(["advise", *words, *quick, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"].startswith(f"{found['chosen']}: mlxhog train --strategy ")
    assert found["because"]
    profile, trial = found["profile"], found["trial"]
    assert len(profile["workers"]) == 2
    assert all(0 < one["min_s"] <= one["mean_s"] <= one["p99_s"] for one in profile["workers"])
    assert profile["sync_s"] >= 0
    assert 0 < profile["p_conf"] <= 1
    assert len(found["expected"]) >= 4
    assert set(trial["names"]) <= {one["name"] for one in found["expected"]}
    assert trial["winner"] in trial["names"]
    assert min(trial["steps"]) >= 4
    assert all(0 < bits < 9 for bits in trial["bits_per_byte"])
    assert list((tmp_path / "runs").glob("*")) == []  # it leaves no run behind
    assert [entry["chosen"] for entry in history.read()] == [found["chosen"]]
    assert main(["advise", "--history"]) == 0
    assert capsys.readouterr().out.startswith("of 1 trials")


def test_without_a_trial_only_the_rules_answer_first_and_in_80_columns(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *words, "--measure", "1", "--samples", "12", "--no-try"]) == 0
    text = capsys.readouterr().out
    assert "mlxhog train --strategy" in text.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 80
    for said in ("why", "what would change it", "predicted", "measured", "barrier and average"):
        assert said in text
    assert history.score(history.read()) == (0, 0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--workers", "mlx:cpu"], "advise on two or more, as in --workers 2"),
        (["--link", "1"], "add --no-try"),
        (["--samples", "3"], "--samples is '3'; wanted"),
        (["--try", "0"], "wanted seconds"),
        (["--strateg", "sync"], "no flag '--strateg'"),
    ],
)
def test_bad_input_is_answered_before_anything_is_measured(
    words: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *words, *more]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    assert "lock-free ..." not in err


def test_a_subject_is_required_and_a_damaged_history_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise"]) == 2
    assert "CONFIG_OR_RUN" in capsys.readouterr().err
    assert main(["advise", "--history"]) == 0
    assert "nothing was advised here yet" in capsys.readouterr().out
    history.path().parent.mkdir(parents=True)
    history.path().write_text("[1]\n{}\n")
    assert main(["advise", "--history"]) == 2
    assert "remove it to begin anew" in capsys.readouterr().err
