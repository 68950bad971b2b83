"""`mlxhog research simulate` through the real command."""

import pytest

from mlxhog.checkpoint.run import Run
from tests.cli.command import refused, said, told


def simulated(capsys, *words):
    """The rows of its JSON by strategy, and their gradients per second."""
    rows = {
        row["strategy"]: row for row in told(capsys, "research", "simulate", *words)["strategies"]
    }
    return rows, {name: row["prediction"]["gradients_per_s"] for name, row in rows.items()}


def test_one_slow_worker_holds_up_who_waits_and_the_answer_stands_first(capsys):
    words = ["--workers", "16", "--inject-stragglers", "1=10", "--updates", "1000"]
    text = said(capsys, "research", "simulate", *words).out
    assert text.startswith("hogwild computes most")
    assert max(map(len, text.splitlines())) <= 100
    between = ["--machines", "2", "--link", "100Mbit:50ms"]
    assert (
        "of the time on the link" in said(capsys, "research", "simulate", *words[:2], *between).out
    )
    rows, rate = simulated(capsys, *words, "--strategies", "hogwild,sync,sync_speed")
    assert rate["hogwild"] > 1.3 * rate["sync_speed"] > 5 * rate["sync"]
    assert rows["hogwild"]["prediction"]["staleness"]["mean"] == pytest.approx(15, abs=0.5)
    assert rows["hogwild"]["prediction"]["waiting"][1] == 0


@pytest.mark.slow
def test_a_toy_problem_shows_what_staleness_costs(capsys):
    words = "--objective quadratic --strategies serial,hogwild --times constant:1s --workers 2"
    words = [*words.split(), "--seed", "1"]
    rows, _ = simulated(capsys, *words)
    assert rows["hogwild"]["target_s"] < rows["serial"]["target_s"]
    assert "hogwild reaches the target first" in said(capsys, "research", "simulate", *words).out


def test_times_of_a_run_are_simulated_and_may_be_slowed(tmp_path, capsys):
    run = Run(tmp_path / "20260101-000000-a")
    run.directory.mkdir()
    run.write_status({"status": "done"})
    one = {"backend": "mlx:cpu", "steps": 3, "compute_us": [1000, 1000, 4000]}
    costs = {"read_s": 0.0, "apply_s": 0.001, "wait_s": 0.0, "other_s": 0.0}
    run.write_times([{"slot": slot, **one, **costs} for slot in (1, 2)])
    words = ["--run", run.directory, "--strategies", "hogwild"]
    for more, expected in (
        ([], 2 / 0.003),
        (["--inject-stragglers", "0=3"], 1 / 0.003 + 1 / 0.007),
    ):
        _, rate = simulated(capsys, *words, *more)
        assert rate["hogwild"] == pytest.approx(expected, rel=0.02)
    both = "--run and --workers are both given; keep one"
    refused(capsys, both, "research", "simulate", *words, "--workers", "3")
    run.times_path.write_text("{}")
    refused(capsys, "times.json is damaged", "research", "simulate", *words)
    run.times_path.unlink()
    refused(capsys, "recorded no times of steps", "research", "simulate", *words)
