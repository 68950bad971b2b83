"""The command line through the real commands: arguments, exit codes, output streams."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml

from mlxhog.cli import COMMANDS, find, main, names
from mlxhog.config.config import TrainConfig
from mlxhog.errors import EnvironmentLacks
from mlxhog.progress import Result
from tests.cli.command import refused, said
from tests.display.sample_run import PROGRESS, WORKER
from tests.pairs import each_of
from tests.words import misread_by_zsh

RESULT = Result(
    run="runs/20260102-101500-sotu", status="done", steps=100, tokens=102_400, seconds=10.0,
    tokens_per_s=10_240.0, val_bits_per_byte=2.05, restarts=0, dropped_steps=0, torn=0,
    lost_update_rate=0.0, workers=(WORKER,), sample="The people of the\x1b[2J United States",
    checkpoint="runs/20260102-101500-sotu/checkpoints/step-00000100",
)  # fmt: skip


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Stands in for the trainer and its plan, and keeps the configuration of a training."""
    monkeypatch.chdir(tmp_path)

    def train(config, *, observer, run):
        fake.config = config
        observer(PROGRESS)
        return fake.result

    fake = SimpleNamespace(train=train, make_plan=Mock(), result=RESULT)
    for name in ("supervisor.training", "plan.decide"):
        monkeypatch.setitem(sys.modules, f"mlxhog.training.{name}", fake)
    return fake


def test_train_prints_the_result_on_stdout_and_progress_on_stderr(trainer, capsys):
    out, err = said(capsys, "train")
    for text in (
        "validation: 2.050 bits per byte",
        f"run: {RESULT.run}",
        f"mlxhog generate {RESULT.run} --prompt The",
        f"mlxhog train --resume {RESULT.run}",
    ):
        assert text in out
    assert "\x1b" not in out
    assert "step 640" in err
    trainer.result = replace(RESULT, val_text="0123 training examples 65536")
    text = "per byte of the training text, which has no validation split"
    assert text in said(capsys, "train").out


def test_quiet_prints_nothing_but_errors_and_json_and_the_code_says_how_it_ended(trainer, capsys):
    for status, code, error in (
        ("done", 0, None),
        ("interrupted", 130, None),
        ("diverged", 4, "20 steps in a row"),
    ):
        trainer.result = replace(RESULT, status=status, error=error)
        ended = ("", f"{error}\n" if error else "")
        assert said(capsys, "train", "--quiet", code=code) == ended
        out, err = said(capsys, "train", "--quiet", "--json", code=code)
        assert err == ""
    result = json.loads(out)
    promised = """run status steps tokens seconds tokens_per_s val_bits_per_byte restarts
    dropped_steps torn lost_update_rate workers checkpoint"""
    assert {*promised.split()} <= result.keys()
    of_worker = {"backend", "pid", "steps", "tokens", "mean_staleness", "shares"}
    assert of_worker <= result["workers"][0].keys()


def deleted(*_, **__):
    Path.cwd().rmdir()
    return os.getcwd()


@each_of(
    ("fault", "code", "message"),
    [
        (EnvironmentLacks("needs 21.4 GB, has 12.8 GB"), 3, "needs 21.4 GB, has 12.8 GB\n"),
        (ImportError("libtorch.so: failed to map", name="torch._C", path="/lib/torch/_C.so"), 3,
         "cannot load the package torch._C: libtorch.so: failed to map; if memory is short, end "
         "other programs or raise the limit (ulimit -v), else install it again: python -m pip "
         "install --force-reinstall mlxhog\n"),
        (MemoryError("9 GB"), 3, "the memory is used up: 9 GB; ask for smaller sizes\n"),
        (MemoryError(), 3, " available; ask for smaller sizes\n"),
        (RuntimeError("out of memory"), 3, "used up: out of memory; ask for smaller sizes\n"),
        (RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity"), 3,
         "macOS ended the work of the GPU, which kept the display waiting: [METAL] Command buffer "
         "execution failed: Impacting Interactivity; run the command again, on the CPU (mlx:cpu) "
         "or with the display off\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(errno.EACCES, "Permission denied", "others/closed"), 2,
         "cannot use 'others/closed': Permission denied; name another path, or make it usable for "
         "you\n"),
        (deleted, 2, "was it deleted or moved? change to another one: cd ~\n"),
        (ModuleNotFoundError("no", name="mlxhog.nothing"), None, ""),  # a fault: with its traceback
    ],
)  # fmt: skip
def test_what_stops_a_command_is_one_message_and_its_exit_code(
    trainer, tmp_path, monkeypatch, capsys, fault, code, message
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(trainer, "make_plan", Mock(side_effect=fault))
    if code is None:
        with pytest.raises(ModuleNotFoundError):
            main(["train", "--dry-run"])
        return
    assert main(["train", "--dry-run"]) == code
    monkeypatch.chdir(tmp_path)
    out, err = capsys.readouterr()
    assert err.endswith(message)
    assert (out, len(err.splitlines())) == ("", 1)


def test_a_dry_run_refuses_the_name_that_the_run_would(trainer, capsys):
    for more in ([], ["--dry-run"]):
        refused(capsys, "run name 'my run': use letters", "train", "--name", "my run", *more)
    assert not trainer.make_plan.called


def test_flags_have_their_types_and_data_takes_several_texts_in_one_flag_or_several(trainer):
    words = "--lr=1e-3 --iters 10k --eval-every -1 --workers torch:cpu*2 --threads auto".split()
    assert main(["train", *words, "--grad-checkpoint"]) == 0
    assert trainer.config == TrainConfig(
        lr=1e-3, steps=10_000, eval_every="off", workers="torch:cpu*2", recompute="blocks"
    )
    Path("conf.yaml").write_text("data: [a b, c]\n")
    for words in (["--data", "a b", "c"], ["--data=a b", "--quiet", "--data=c"], ["-cconf.yaml"]):
        assert main(["train", *words]) == 0
        assert trainer.config.data == TrainConfig(data=["a b", "c"]).data == "a b\nc"
    assert yaml.safe_load(trainer.config.to_yaml())["data"] == ["a b", "c"]
    assert main(["train", "--config", "conf.yaml", "--data", "d"]) == 0
    assert trainer.config.data == "d"


SHORT = ["train", "compare", *(f"research {name}" for name in COMMANDS["research"])]
SHORT += ["mad train", "mad bench", "mad search"]
ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "models", "tests")


def examples(text):
    """Yield the words of each example of a help, without the part for the shell."""
    for line in text.partition("\nexamples:\n")[2].splitlines():
        if line.startswith("  mlxhog "):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            ends = [at for at, word in enumerate(words) if set(word) <= set(";<>|&")]
            yield words[1 : min(ends, default=len(words))]


def check_examples(text):
    """Every example of a help is a valid command line, and names files that exist."""
    lines = list(examples(text))
    assert lines
    for line, below in re.findall(r"^  (mlxhog .*)$(?=\n?(.*))", text, re.MULTILINE):
        says = re.match(r" {6}.*\d GB", below)
        assert says or " hf:" not in line, f"{line}: say how much it downloads, or takes"
        assert misread_by_zsh(line) == [], f"{line}: quote it, and write comments indented below it"
    for words in lines:
        command, rest = find(words)
        command.flags().parse(rest)
        for word in words:
            assert not word.endswith("/latest"), f"{words}: latest is the name of a run by itself"
            in_tree = word.split("/")[0] in FOLDERS and "/" in word
            assert not in_tree or (ROOT / word).exists(), f"{words}: there is no {word}"


@each_of("name", names())
def test_every_command_has_help_with_examples_that_can_be_typed_and_a_short_one_names_a_longer(
    name, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    shown = []
    for words in (f"{name} --help", f"help {name}", f"{name} --help-all"):
        if words.endswith("--help-all") and name not in SHORT:
            continue
        with pytest.raises(SystemExit) as stop:
            main(words.split())
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    check_examples(shown[0])
    for text in (f"mlxhog {name}", "examples:", "--json"):
        assert text in shown[0]
    assert ("--help-all lists all" in shown[0]) == (name in SHORT)
    assert len(shown[-1]) > 1.2 * len(shown[0]) or name not in SHORT
    if name == "train":
        listed, _, rest = shown[0].partition("main options:")[2].partition("--help-all lists all")
        assert sum(line.startswith("  -") for line in listed.splitlines()) == 15
        assert int(rest.split()[0]) > 100
        assert max(map(len, listed.splitlines())) <= 80
        *_, last, _ = re.findall(r"^([a-z -]+):$", shown[-1], re.MULTILINE)
        assert last == "research"


def test_a_help_is_printed_in_a_window_of_one_column(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    assert "usage: mlxhog train" in capsys.readouterr().out


def test_eval_takes_the_newest_checkpoint_where_it_is_named():
    command, words = find(["eval", "sotu", "--checkpoint", "latest"])
    assert command.flags().parse(words)[0].checkpoint == "latest"  # else best where the last rose


@pytest.mark.parametrize("before", [None, "ACTIVE"])
def test_help_lists_all_commands_and_torch_spins_when_told(before, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["runs"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == (before or "PASSIVE")
    monkeypatch.chdir(ROOT)
    for family, files in COMMANDS.items():
        capsys.readouterr()
        assert main([family or "--help"]) == 0
        out = capsys.readouterr().out
        check_examples(out)
        assert max(map(len, out.splitlines())) <= 100
        assert "others:" not in out
        for name in files:
            if family or name not in COMMANDS:  # each with the first line of its own help
                command, _ = find(f"{family} {name}".split())
                about = sys.modules[command.function.__module__].__doc__.partition("\n")[0]
                assert re.search(rf"^  {name} +{re.escape(about[:-1])}$", out, re.MULTILINE)
    assert len(COMMANDS[""]) <= 25


@each_of(
    ("to", "words", "code", "message"),
    [
        ("&-", "models", 3, "the output cannot be written: standard output is closed\n"),
        ("&-", "no-command", 2, "no command 'no-command'; mlxhog help lists them\n"),
        ("/dev/full", "models", 3, "the output cannot be written: No space left on device\n"),
    ],
)
def test_output_that_cannot_be_written_is_one_message(to, words, code, message):
    if to == "&-" or Path(to).exists():  # Linux has /dev/full
        line = f"{shlex.quote(sys.executable)} -m mlxhog {words} >{to}"
        ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (code, message)


@each_of(
    ("command", "code"), [("models", 0), ("mad data --task selective-copying --output t.npz", 3)]
)
def test_a_closed_pipe_is_silent_whether_a_command_only_tells_or_writes(command, code, tmp_path):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "mlxhog", *command.split()]
    with os.fdopen(write) as out:
        ended = subprocess.run(words, stdout=out, stderr=-1, text=True, cwd=tmp_path, check=False)
    assert (ended.returncode, ended.stderr) == (code, "")


def test_only_these_commands_write_so_any_other_ends_with_its_reader():
    writes = {name for name in names() if find(name.split())[0].writes}
    of_mad = {f"mad {name}" for name in "bench consensus data deepen plot resume search".split()}
    of_runs = {"cache clear", "runs rm", "join", "stop", "report", "plot", "dashboard"}
    others = {"train", "compare", "convert", "parity export", "serve", "cluster"}
    assert writes == {*others, *of_runs, *of_mad}


def test_a_fault_of_the_program_shows_no_control_character_to_a_terminal(monkeypatch, capsys):
    from mlxhog.__main__ import main as program

    fault = KeyError("\x1b]0;title\x07\x9b2J")
    monkeypatch.setattr("mlxhog.cli.main", Mock(side_effect=fault))
    monkeypatch.setattr("mlxhog.base.interrupts.raise_keyboard_interrupt", lambda: None)
    assert program() == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "title" in err
    assert all(c.isprintable() or c == "\n" for c in err)
