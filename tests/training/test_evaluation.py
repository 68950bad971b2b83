"""Every held-out score of a run is of the same text, regardless of its time or speed."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxhog import train
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.training import evaluation, worker
from mlxhog.training.evaluation import HeldOutScore, HeldOutText, HeldOutTexts, HeldOutWatch
from mlxhog.training.plan import make_plan
from tests.training.small import Messages, small_config


def held_out_file(folder, n_bytes):
    path = folder / "val.bin"
    with TokenWriter(path, ByteTokenizer(), split="val", source="test") as writer:
        for k in range(40):
            writer.add(b"%02d" % k + b"x" * (n_bytes // 40 - 2))
    return TokenFile.open(path)


def test_the_size_of_the_part_follows_from_the_model_and_is_64_kib_where_it_can_be(tmp_path):
    file = held_out_file(tmp_path, 1_000_000)
    for config, parameters, size in (
        (TrainConfig(time=10), 940_000, 65_536),
        (TrainConfig(time=36_000), 940_000, 65_536),
        (TrainConfig(steps=20), 10_400_000, 32_768),
        (TrainConfig(time=20), 162_000_000, 2_048),
        (TrainConfig(steps=20), 10**13, evaluation.LEAST_BYTES),
        (TrainConfig(steps=20, kernels=EMULATED), 940_000, 4_096),
        (TrainConfig(time=60, eval_tokens=5000), 10**13, 5000),
    ):
        assert evaluation.choose_bytes(config, parameters, file) == size


def test_the_larger_text_is_all_of_it_or_as_much_as_a_model_scores_soon(tmp_path):
    file, config = held_out_file(tmp_path, 40_000), TrainConfig(seq_len=50)
    texts = HeldOutTexts(file, config, 1000, 8000)
    assert texts.larger.file is file
    assert texts.n_batches == texts.part.n_batches + texts.larger.n_batches
    assert HeldOutTexts(file, config, 50_000_000, 8000).larger.file.header["bytes"] < 30_000
    for parameters, asked, kernels in ((1000, 40_000, "auto"), (10**8, 8000, EMULATED)):
        other = replace(config, kernels=kernels)
        assert HeldOutTexts(file, other, parameters, asked).larger is None


def test_an_evaluation_that_does_not_score_all_of_its_text_has_no_score(tmp_path):
    text = HeldOutText(held_out_file(tmp_path, 4000), 50, 40)
    backend = SimpleNamespace(
        evaluate=lambda batch: SimpleNamespace(nats=2.0, targets=batch.n_labels)
    )
    answers = iter([False, True])
    assert text.n_batches > 1
    assert text.score_whole(backend, lambda: next(answers)) is None
    whole = text.score_whole(backend, lambda: False)
    assert whole == HeldOutScore(2.0 * text.n_batches, 4000, 4000, 1.0)


def test_evaluations_by_time_take_a_twentieth_of_the_workers_time_and_those_by_steps_any():
    asked, deaths = [], []
    monitor = SimpleNamespace(evaluations=0, evaluating_s=0.0, seconds=lambda: 100.0)
    session = SimpleNamespace(
        ends=lambda: len(deaths), strategy=SimpleNamespace(workers=2), ask=asked.append
    )
    watch = HeldOutWatch(TrainConfig(eval_every="10s"), None, "")

    def asks():
        before = len(asked)
        watch.ask_for_next(session, monitor)
        return len(asked) > before

    assert asks()
    assert not asks()  # the first one is not over
    monitor.evaluations, monitor.evaluating_s = 1, 10.0
    assert asks()
    monitor.evaluations, monitor.evaluating_s = 2, 10.1
    assert not asks()
    monitor.evaluating_s = 5.0
    assert asks()
    deaths.append(1)  # maybe of the worker that evaluates
    assert asks()
    watch, monitor.evaluating_s = HeldOutWatch(TrainConfig(eval_every=5), None, ""), 1000.0
    assert asks()
    assert asks()


# -- real runs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_last_line_names_the_fixed_part_and_the_larger_score_each_with_its_share(tmp_path):
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.val_tokens, result.val_bytes, result.final_tokens) == (1024, 1024, 3113)
    bits, final = result.val_bits_per_byte, result.final_bits_per_byte
    part = f"{bits:.3f} bits per byte of the same 33% as in every evaluation"
    assert f"held-out text: {part}; {final:.3f} of all of it\n" in summary(result)
    cut = replace(result, final_share=0.38)
    assert f"; {final:.3f} of 38%\n" in summary(cut)
    early = replace(result, val_step=2, final_bits_per_byte=None)
    at = "bits per byte at step 2 of 4 of the same 33% as in every evaluation"
    assert f"{bits:.3f} {at}; the end was not evaluated" in summary(early)
    whole = replace(result, val_share=1.0, final_bits_per_byte=None)
    assert f"held-out text: {bits:.3f} bits per byte\n" in summary(whole)


def that_is_killed(job, where, often):
    """A worker that is killed when it scores the part, or the larger text. Children import it."""
    score, mark = HeldOutTexts.score, job.run_dir / "killed"

    def killed(texts, backend, place):
        if (place >= texts.part.n_batches) == (where == "larger") and (often or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return score(texts, backend, place)

    HeldOutTexts.score = killed
    worker.main(job)


@pytest.mark.slow
def test_batches_of_a_dead_worker_are_scored_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "main", partial(that_is_killed, where="part", often=False))
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.status, result.restarts, result.val_tokens) == ("done", 1, 1024)
    assert result.final_share == 1.0
    assert main(["eval", result.run, "--json"]) == 0


@pytest.mark.slow
def test_a_complete_run_whose_workers_keep_dying_in_the_larger_score_is_done_without_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(worker, "main", partial(that_is_killed, where="larger", often=True))
    messages = Messages()
    config = small_config(tmp_path, steps=4, eval_every="1h", restarts=1)
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.restarts) == ("done", 4, 1)
    assert (result.val_at_end, result.val_tokens) == (True, 1024)
    assert result.final_bits_per_byte is None
    (line,) = [text for text in messages if "larger held-out score" in text]
    why = "worker 1 (mlx:cpu) died 2 times in 10 minutes (last: signal SIGKILL"
    assert line.startswith(f"the larger held-out score was left out: {why}")
    assert Run(Path(result.run)).read_status()["status"] == "done"


@pytest.mark.slow
def test_a_resumed_run_keeps_its_text_whatever_its_model_would_have(tmp_path, monkeypatch):
    folder = tmp_path / "long"
    folder.mkdir()
    for name in ("valid", "train"):
        document = json.dumps({"text": " ".join(["lock", "free"] * 8000)}) + "\n"
        (folder / f"{name}.jsonl").write_text(document)
    options = {"data": str(folder), "eval_tokens": None, "steps": 1}
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "PART_FLOPS", 1.0)
        first = train(small_config(tmp_path, **options))
    options |= {"resume": first.run}
    part = make_plan(small_config(tmp_path, **options)).held_out
    assert (part.asked_bytes, part.text) == (evaluation.LEAST_BYTES, first.val_text)
    options |= {"eval_tokens": 16_384, "eval_every": "1h"}
    assert make_plan(small_config(tmp_path, **options)).held_out.asked_bytes == 16_384


def test_a_checkpoint_of_another_version_is_refused_in_one_sentence(tmp_path, capsys):
    first = train(small_config(tmp_path, steps=1))
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
