"""Every held-out score of a run is of the same text, regardless of its time or speed."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena.process import monotonic_ns
from mlxhog.checkpoint import manifest
from mlxhog.cli import main
from mlxhog.report.metrics import Result
from mlxhog.training import evaluation
from mlxhog.training.final_evaluation import FinalEvaluation
from mlxhog.training.plan import make_plan
from tests.training.small import small_config

WORDS = ["lock", "free", "adds", "never", "wait"]


def texts(folder):
    """A corpus whose held-out text is hard in its first half, and easy in its second."""
    rng = np.random.default_rng(0)
    hard = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 200)) for _ in range(15)]
    easy = [" ".join(rng.choice(WORDS, 40)) for _ in range(15)]
    for name, documents in (("valid", hard + easy), ("train", easy * 4)):
        lines = [json.dumps({"text": document}) + "\n" for document in documents]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return str(folder)


def listed(root, capsys):
    """The bits per byte of the one run that `mlxhog runs` lists."""
    capsys.readouterr()
    assert main(["runs", "--out", str(root), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return float(json.loads(line)["bits_per_byte"])


def of_all_text(result, capsys):
    """The bits per byte of all held-out text, by `mlxhog eval`."""
    capsys.readouterr()
    assert main(["eval", str(result.checkpoint), "--backend", "mlx:cpu", "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["bits_per_byte"])


def end_after(monkeypatch, batches):
    """Let the last evaluation end when the fixed part and some batches of all text are done."""

    def begin(evaluation):
        most = len(evaluation._scores)
        end = most if batches is None else evaluation._part_end + batches
        evaluation._begin(end, monotonic_ns() + 60 * 10**9)
        return True

    monkeypatch.setattr(FinalEvaluation, "begin", begin)


@pytest.mark.slow
def test_the_list_shows_a_rise_after_more_training_only_where_all_of_the_text_has_it(
    tmp_path, monkeypatch, capsys
):
    shown, whole, results = list[float](), list[float](), list[Result]()
    options = {
        "data": texts(tmp_path), "eval_every": "1h", "eval_tokens": 512, "seed": 1,
        "schedule": "constant", "warmup": 0.0, "name": "one",
    }  # fmt: skip
    for batches, more in (
        (None, {"steps": 60}),
        (3, {"steps": 4}),  # better, but there is time for the harder parts of the text alone
        (None, {"steps": 4, "lr": 30.0}),  # ruined
    ):
        end_after(monkeypatch, batches)
        resumed = {"resume": results[-1].run} if results else {}
        results.append(train(small_config(tmp_path, **{**options, **more, **resumed})))
        shown.append(listed(tmp_path / "runs", capsys))
        whole.append(of_all_text(results[-1], capsys))
    assert (whole[1] < whole[0], shown[1] < shown[0]) == (True, True)
    assert (whole[2] > whole[1], shown[2] > shown[1]) == (True, True)
    assert len({(each.val_text, each.val_bytes) for each in results}) == 1
    assert shown == [each.val_bits_per_byte for each in results]
    # The larger score covers what there was time for, and says so.
    assert [each.final_share == 1.0 for each in results] == [True, False, True]
    assert results[0].final_bits_per_byte == pytest.approx(whole[0], rel=1e-5)
    assert results[1].final_bits_per_byte > results[0].final_bits_per_byte


@pytest.mark.slow
def test_a_resumed_run_keeps_its_text_whatever_its_budget(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    for name in ("valid", "train"):
        document = json.dumps({"text": " ".join(WORDS * 4000)}) + "\n"
        (folder / f"{name}.jsonl").write_text(document)
    options = {"data": str(folder), "eval_tokens": None, "steps": None}
    first = train(small_config(tmp_path, **options, time=1e-3))  # the model is too slow for that
    options |= {"resume": first.run, "steps": 1}
    part = make_plan(small_config(tmp_path, **options)).held_out
    assert (part.asked_bytes, part.text) == (evaluation.LEAST_BYTES, first.val_text)
    options |= {"eval_tokens": 16_384, "eval_every": "1h"}
    assert make_plan(small_config(tmp_path, **options)).held_out.asked_bytes == 16_384


def test_a_checkpoint_of_another_version_is_refused_in_one_sentence(tmp_path, capsys):
    first = train(small_config(tmp_path))
    path = Path(str(first.checkpoint)) / "state.json"
    record = json.loads(path.read_text())
    for name in ("held_out", "strategy"):
        del record["state"][name]
    record["sha256"] = manifest._own_digest(record)
    path.write_text(json.dumps(record))
    assert main(["train", "--resume", str(first.run), "--steps", "1"]) != 0
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path.parent} has no strategy, held_out: another version of mlxhog wrote it" in error
    assert f"mlxhog train --init-from {path.parent}" in error


@pytest.mark.slow
def test_a_score_of_less_text_than_the_fixed_part_is_not_called_the_larger_one(
    tmp_path, monkeypatch
):
    def little(self):
        return evaluation.HeldOutScore(nats=700.0, n_bytes=100, tokens=100, share=0.1)

    options = {"data": texts(tmp_path), "steps": 2, "eval_every": "1h", "eval_tokens": 2000}
    whole = train(small_config(tmp_path, **options))
    assert whole.final_bits_per_byte is not None
    assert whole.final_share > whole.val_share
    monkeypatch.setattr(FinalEvaluation, "larger", little)
    cut = train(small_config(tmp_path, **options))
    assert cut.val_bits_per_byte is not None
    assert (cut.final_bits_per_byte, cut.final_share) == (None, None)
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "FINAL_TOKENS", 1000)  # less than the part that was asked for
    small = train(small_config(tmp_path, **options))
    assert small.val_bits_per_byte is not None
    assert small.final_bits_per_byte is None
