"""`mlxhog show`, `plot` and `eval` on a resumed run."""

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxhog.checkpoint.checkpoint import write_model
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.config.sources import read_yaml
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.models.adapters import LoRA
from mlxhog.models.families import init_params
from mlxhog.training.supervisor.training import train
from tests.cli.command import refused, said, told
from tests.data.token_files import written
from tests.display.sample_run import VALIDATION, lines, write_run
from tests.saved import SMALL, saved_run, write_adapter
from tests.training.small import mixed_model, small_config
from tests.words import misread_by_zsh

PNG = b"\x89PNG\r\n\x1a\n"
BACKEND = ["--backend", "mlx:cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps that was continued for 10 more, and both results."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"eval_every": "1h", "report_to": "tensorboard", "name": "words"}
    first = train(small_config(folder, **options))
    second = train(small_config(folder, **{**options, "steps": 10}, resume=first.run))
    return SimpleNamespace(folder=folder, first=first, second=second, run=Run(Path(second.run)))


def test_the_options_of_a_resumed_run_name_every_command_and_are_still_read(trained):
    text = trained.run.config_path.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert [line.split(": mlxhog train")[0] for line in head[1:]] == [
        "#   steps 1 to 20",
        "#   steps 21 on",
    ]
    assert "--steps 20" in head[1]
    assert "--resume" in head[2]
    assert "--steps 10" in head[2]
    values = {name: value for name, (value, _) in read_yaml(trained.run.config_path).items()}
    assert values["steps"] == 10


@pytest.fixture
def here(trained, monkeypatch):
    """The run, from the folder that holds its runs, on a terminal of 80 columns."""
    monkeypatch.chdir(trained.folder)
    monkeypatch.setenv("COLUMNS", "80")
    return trained


@pytest.mark.slow
def test_show_says_model_data_options_resumes_and_checkpoints(here, capsys):
    shown = " ".join(said(capsys, "show", "words").out.split())  # lines fold by the path
    for part in (
        f"{here.run.name}: done",
        "small.yaml family xLSTM Large",
        "tokenizer bytes",
        "strategy hogwild workers mlx:cpu",
        "steps 30 tokens 1.92k",
        "resumed at 20",
        "seq_len 32 tokens, batch_size 2",
        "step-00000020, step-00000030 (latest)",
    ):
        assert part in shown, part
    record = told(capsys, "show", "latest")
    assert (record["resumed"], record["last"]["step"], record["options"]["lr"]) == ([20], 30, 1e-3)
    assert record["checkpoints"][-1] == "step-00000030 (latest)"
    rates = [line["lr"] for line in here.run.read_metrics()]
    assert all(0 < lr <= 1e-3 for lr in rates)
    first, second = record["commands"]
    assert [first["steps"], second["steps"]] == ["steps 1 to 20", "steps 21 to 30"]
    assert "--steps 20" in first["command"]
    assert second["command"] == f"mlxhog train --resume {here.run.name} --steps 10"


def test_show_of_a_family_that_transformers_lacks_says_what_loads_it(tmp_path, capsys):
    config = small_config(tmp_path, model=mixed_model(tmp_path), steps=1)
    run = Path(train(config).run)
    record = told(capsys, "show", run.name, "--runs-dir", tmp_path / "runs")
    assert record["load"] == f"mlxhog convert {run} DIR --format hf"
    shown = " ".join(said(capsys, "show", run.name, "--runs-dir", tmp_path / "runs").out.split())
    assert f"load mlxhog.load('{run}'), mlxhog convert {run} DIR --format hf" in shown


def test_show_of_a_run_with_an_adapter_says_how_it_is_merged(tmp_path, capsys):
    run, adapted = saved_run(tmp_path, "run"), replace(SMALL, adapter=LoRA(rank=3))
    write_model(run.architecture, SMALL, ByteTokenizer())
    run.config_path.write_text("steps: 1\n")
    (run.model / "model.safetensors").unlink()
    write_adapter(run.model, adapted, init_params(adapted, 1), base="base")
    load = f"mlxhog convert {run.directory} DIR --merge --format hf"
    assert told(capsys, "show", run.directory)["load"] == load


def test_show_names_transformers_only_for_a_model_that_it_computes_as_we_do(tmp_path, capsys):
    for k, (resets, says) in enumerate([(False, "transformers.Auto"), (True, "mlxhog convert ")]):
        model = replace(SMALL, reset_at_document_boundaries=resets, bos_token_id=256)
        run = saved_run(tmp_path, f"run-{k}", model)
        write_model(run.architecture, model, ByteTokenizer())
        run.config_path.write_text("steps: 1\n")
        record = told(capsys, "show", run.directory)
        assert record["load"].startswith(says)


def test_the_next_lines_of_a_run_without_a_checkpoint_can_be_pasted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("my runs"), metrics=lines(4)).directory
    out = said(capsys, "show", run).out
    after = re.findall(r"^(?:next: |      )(mlxhog .*)", out, re.MULTILINE)
    at = f"my runs/{run.name}"
    assert [shlex.split(line)[1:] for line in after] == [
        ["plot", at],
        ["train", "--config", f"{at}/config.yaml"],
    ]
    assert [misread_by_zsh(line) for line in after] == [[], []]
    assert "it has no checkpoint, so mlxhog train begins again\nnext: " in out


def test_plot_and_report_write_below_the_home_that_a_tilde_means(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    write_run(tmp_path / "runs", "one", metrics=lines(9))
    for command, name in (("plot", "a.png"), ("report", "a.html")):
        path = told(capsys, command, "one", f"--output=~/{name}")[command]
        assert Path(path) == tmp_path / "home" / name
        assert Path(path).is_file()


def test_the_final_score_of_before_a_resume_is_not_that_of_its_newest_evaluation(tmp_path, capsys):
    metrics = list(lines(20, workers=2))
    metrics[4] |= {"final_bits_per_byte": 2.0, "final_share": 1.0, "val_step": 100}
    metrics[19] |= {"val_step": 400}
    run = write_run(tmp_path, metrics=metrics)
    (plotted,) = told(capsys, "plot", run.directory)["runs"]
    for scores in (plotted, told(capsys, "show", run.directory)["last"]):
        assert (scores["final_bits_per_byte"], scores["val_step"]) == (None, 400)


def test_plot_draws_runs_on_one_scale_and_says_what_it_cannot(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    validation = {"validation": VALIDATION}
    write_run(tmp_path / "runs", "20260101-000000-one", metrics=lines(3000), status=validation)
    write_run(tmp_path / "runs", "20260101-000001-two", metrics=lines(4))
    one, two, scale, path = said(capsys, "plot", "one", "two", "one").out.splitlines()
    assert ("▁" in one, "▁" in two) == (True, False)  # 7 to .13, and 7 to 3.5
    assert one.startswith("20260101-000000-one")
    assert "validation 0.13" in one
    assert max(map(len, (one, two, scale))) <= 80
    assert "from 7.00 at the top to 0.13" in scale
    assert path == "losses.png"
    assert Path(path).read_bytes().startswith(PNG)
    record = told(capsys, "plot", "one", "two", "--output", "both.png")
    assert (record["plot"], record["notes"]) == ("both.png", [])
    assert [run["lines"] for run in record["runs"]] == [3000, 4]
    for name, begin in {"x.svg": b"<?xml", "x.pdf": b"%PDF-", "x.PNG": PNG}.items():
        told(capsys, "plot", "one", "--output", name)
        assert Path(name).read_bytes().startswith(begin)
    for name in ("x.gif", "x", "x.html"):
        refused(capsys, "expected one of .png, .svg, .pdf", "plot", "one", "--output", name)
        assert not Path(name).exists()
    refused(capsys, "expected one of .html", "report", "one", "--output", "x.pdf")
    write_run(tmp_path / "runs", "old", metrics=lines(9), status={"validation": None})
    shown = " ".join(said(capsys, "plot", "one", "old").out.splitlines())
    assert "validation scores of different text cannot be compared: 20260101-000000-one" in shown
    (note,) = (n for n in told(capsys, "plot", "one", "old")["notes"] if "different text" in n)
    assert "-one (66 kB, 8%, data" in note
    assert "old (not recorded, data" in note
    new = write_run(tmp_path / "runs", "new")
    ended = "the run new has no training loss, and is done; mlxhog show new describes it"
    refused(capsys, ended, "plot", "new")
    new.write_status({"status": "running"})
    with new.lock():
        refused(capsys, "new has no numbers yet", "plot", "new")


@pytest.mark.slow
def test_eval_of_the_validation_text_is_what_training_ended_with(here, capsys, tmp_path):
    about, first, second = partial(pytest.approx, rel=1e-5), here.first, here.second
    assert (first.final_share, second.final_share) == (1.0, 1.0)
    record = told(capsys, "eval", "words", *BACKEND)
    assert record["bits_per_byte"] == about(second.final_bits_per_byte)
    assert record["subset"]["bits_per_byte"] == about(second.val_bits_per_byte)
    assert record["seq_len"] == 32
    earlier = told(capsys, "eval", "words", *BACKEND, "--checkpoint", "step-00000020")
    assert earlier["bits_per_byte"] == about(first.final_bits_per_byte)
    base = here.run.directory / "checkpoints" / "step-00000020"
    exported = tmp_path / "base"
    assert main(["convert", str(base), str(exported), "--format", "hf"]) == 0
    capsys.readouterr()
    refused(capsys, "no validation text", "eval", str(exported))
    refused(capsys, "leave one out", "eval", str(exported), "--like", "words", "--data", "x")
    alike = told(capsys, "eval", str(exported), "--like", "words", *BACKEND)
    assert alike["bits_per_byte"] == about(first.final_bits_per_byte)
    assert alike["subset"]["tokens"] == record["subset"]["tokens"]
    link = told(capsys, "eval", str(here.run.model), *BACKEND)
    assert link["bits_per_byte"] == about(second.final_bits_per_byte)


@pytest.mark.slow
def test_eval_scores_every_file_and_their_sum(here, capsys, tmp_path):
    words = "lock free adds never wait " * 9
    texts = {"a.txt": words, "b/a.txt": "\u00e4" * 40, "empty.txt": " \n", "picture.png": PNG}
    files = written(tmp_path / "notes", texts)
    (files / "pipe.txt").symlink_to("/dev/zero")
    options = ["--data", str(files), *BACKEND, "--seq-len", "64"]
    record = told(capsys, "eval", "latest", *options)
    a, b = record["files"]
    assert [one["file"] for one in record["files"]] == ["a.txt", "b/a.txt"]
    assert (a["bytes"], b["bytes"]) == (26 * 9, 80)
    skipped = [Path(one["path"]).name for one in record["skipped"]]
    assert skipped == ["empty.txt", "picture.png", "pipe.txt"]
    assert record["nats"] == pytest.approx(a["nats"] + b["nats"])
    assert record["perplexity"] == pytest.approx(math.exp(record["nats"] / record["tokens"]))
    assert record["bits_per_byte"] == pytest.approx(record["nats"] / math.log(2) / record["bytes"])
    assert a["bits_per_byte"] < b["bits_per_byte"]  # it has read such words
    out, err = said(capsys, "eval", "latest", *options)
    assert "note: 3 of 5 files skipped: empty.txt: no text in it; pipe.txt: a pipe or a" in err
    rows = out.splitlines()[1:]
    assert [row.split()[0].rpartition("/")[2] for row in rows[:3]] == ["a.txt", "a.txt", "whole"]
    assert rows[3].endswith("step-00000030")


@pytest.mark.slow
def test_eval_of_a_text_scores_as_the_run_was_trained(here, capsys, tmp_path):
    questions, path = [f"adds {k}" for k in range(60)], tmp_path / "pairs.jsonl"
    lines = (json.dumps({"q": one, "a": "never wait", "id": "x" * 99}) for one in questions)
    path.write_text("\n".join(lines))
    n_whole = sum(len(f"{one}\nnever wait") for one in questions)
    for loss_on, n_bytes in (("all", n_whole), ("assistant", 60 * len("never wait"))):
        config = small_config(tmp_path, data=str(path), text_key="q,a", loss_on=loss_on, steps=1)
        run = train(config).run
        assert told(capsys, "eval", run, "--data", str(path), *BACKEND)["bytes"] == n_bytes
    ids = told(capsys, "eval", run, "--data", str(path), "--text-key", "id", *BACKEND)
    assert ids["bytes"] == 60 * 99


@pytest.mark.slow
def test_eval_refuses_bad_input(here, capsys, tmp_path):
    written(Path("bad"), {"a.txt": "text", "b.txt": b"\0"})
    copy = shutil.copytree(here.run.model, tmp_path / "copy")
    for words, message in (
        ("latest --checkpoint first", "has no checkpoint 'first'; it has step-00000020"),
        ("latest --data bad --strict-data", "and --strict-data refuses them"),
        ("wrods", "did you mean"),
        (str(copy), "name a text with --data, or a run with --like"),
    ):
        refused(capsys, message, "eval", *words.split())
