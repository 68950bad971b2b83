"""The command line through the real commands: arguments, exit codes, output streams."""

import json
import os
import re
import subprocess
import sys
import tomllib
import types
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mlxhog.checkpoint import creation
from mlxhog.cli import COMMANDS, PACKAGES, mad, main
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizers import AdamW, Muon
from mlxhog.errors import EnvironmentLacks
from mlxhog.report.metrics import Result
from tests.pairs import each_of
from tests.report.sample_run import PROGRESS, WORKER

ROOT = Path(__file__).parents[2]

RESULT = Result(
    run="runs/20260102-101500-sotu",
    status="done",
    steps=100,
    tokens=102_400,
    seconds=10.0,
    tokens_per_s=10_240.0,
    val_bits_per_byte=2.05,
    restarts=0,
    dropped_steps=0,
    torn=0,
    lost_update_rate=0.0,
    workers=(WORKER,),
    checkpoint="runs/20260102-101500-sotu/checkpoints/step-00000100",
    sample="The people of the\x1b[2J United States",
)


class Trainer(types.ModuleType):
    """Replaces the trainer and its plan, and keeps their configuration."""

    def __init__(self, result):
        super().__init__("mlxhog.training.trainer")
        self.result = result
        self.config = None

    def make_plan(self, config):
        self.config = config
        return types.SimpleNamespace()

    def train(self, config, *, observer, run):
        self.config = config
        observer(PROGRESS)
        return self.result


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake = Trainer(RESULT)
    for name in ("trainer", "plan"):
        monkeypatch.setitem(sys.modules, f"mlxhog.training.{name}", fake)
    return fake


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "mlxhog", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("expected", [None, "ACTIVE"])
def test_torch_does_not_spin_between_its_jobs_unless_told_to(monkeypatch, expected, tmp_path):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    if expected is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    script = (
        "import sys; from mlxhog.cli import main; assert 'torch' not in sys.modules; "
        "main(['runs', '--out', sys.argv[1]]); import os; print(os.environ['OMP_WAIT_POLICY'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == (expected or "PASSIVE")


def test_a_score_of_the_training_text_is_not_called_held_out_alone(trainer, capsys):
    trainer.result = replace(trainer.result, val_text="0123 training examples 65536")
    assert main(["train"]) == 0
    out, _ = capsys.readouterr()
    assert "2.050 bits per byte of the training text, since none is held out" in out


def test_train_prints_the_result_on_stdout_and_progress_on_stderr(trainer, capsys):
    assert main(["train"]) == 0
    out, err = capsys.readouterr()
    assert "held-out text: 2.050 bits per byte" in out
    assert "run: runs/20260102-101500-sotu" in out
    assert 'mlxhog generate runs/20260102-101500-sotu --prompt "The"' in out
    assert "mlxhog train --resume runs/20260102-101500-sotu" in out
    assert "\x1b" not in out
    assert "step 640" in err


def test_train_json_prints_one_line_with_the_promised_keys(trainer, capsys):
    assert main(["train", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    promised = {
        "run",
        "status",
        "steps",
        "tokens",
        "seconds",
        "tokens_per_s",
        "val_bits_per_byte",
        "restarts",
        "dropped_steps",
        "torn",
        "lost_update_rate",
        "workers",
    }
    assert promised <= set(result)
    of_worker = ["backend", "pid", "steps", "tokens", "mean_staleness", "shares"]
    assert list(result["workers"][0]) == of_worker
    assert result["checkpoint"] == RESULT.checkpoint


@each_of(("status", "code"), [("done", 0), ("interrupted", 130), ("diverged", 4)])
def test_the_exit_code_says_how_the_run_ended(trainer, status, code):
    trainer.result = replace(RESULT, status=status)
    assert main(["train", "--quiet"]) == code


def test_quiet_prints_nothing_but_errors_and_json(trainer, capsys):
    assert main(["train", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["train", "--quiet", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == RESULT.steps
    assert err == ""
    trainer.result = replace(RESULT, status="diverged", error="20 steps in a row")
    assert main(["train", "--quiet"]) == 4
    assert capsys.readouterr() == ("", "20 steps in a row\n")


def test_flags_reach_the_trainer_with_their_types(trainer):
    words = "--lr=1e-3 --iters 10k --eval-every -1 --workers torch:cpu*2 --threads auto".split()
    assert main(["train", *words]) == 0
    assert trainer.config == TrainConfig(
        lr=1e-3, steps=10_000, eval_every="off", workers="torch:cpu*2"
    )


@pytest.fixture
def stored_run(monkeypatch, tmp_path):
    """The name of a run that was started with --lr 0.5 --steps 100."""
    monkeypatch.chdir(tmp_path)
    new_run = creation.create(Path("runs"), "old")
    new_run.config_path.write_text(TrainConfig(lr=0.5, steps=100).to_yaml())
    return new_run.name


def test_resume_takes_the_stored_options_and_flags_win(trainer, stored_run):
    assert main(["train", "--resume", stored_run, "--clip", "1"]) == 0
    config = trainer.config
    assert (config.resume, config.lr, config.clip) == (stored_run, 0.5, 1.0)
    assert not config.has_budget  # the checkpoint has the rest of the run's budget


@pytest.mark.parametrize("words", [["--time", "10m"], ["--iters", "50"]])
def test_a_budget_given_with_resume_replaces_the_stored_one(trainer, stored_run, words):
    assert main(["train", "--resume", stored_run, *words]) == 0
    config = trainer.config
    assert (config.steps, config.time) in [(None, 600.0), (50, None)]


def test_another_optimizer_does_not_inherit_the_step_size_of_the_run(trainer, stored_run):
    reset = ["train", "--resume", stored_run, "--reset-optimizer"]
    assert main([*reset, "--optimizer", "muon"]) == 0  # it is the default
    assert (trainer.config.optimizer, trainer.config.lr) == (Muon(), 0.5)
    assert main([*reset, "--optimizer", "auto"]) == 0
    assert (trainer.config.optimizer, trainer.config.lr) == (Muon(), 0.5)
    assert main([*reset, "--optimizer", "adamw"]) == 0
    assert (trainer.config.optimizer, trainer.config.lr) == (AdamW(), None)
    assert main([*reset, "--optimizer", "adamw", "--lr", "0.1"]) == 0
    assert trainer.config.lr == 0.1


def test_resuming_a_run_that_is_not_there_names_the_nearest(trainer, stored_run, capsys):
    assert main(["train", "--resume", stored_run + "x"]) == 2
    assert f"did you mean '{stored_run}'?" in capsys.readouterr().err


def test_runs_says_how_to_make_the_first_one(tmp_path, capsys):
    assert main(["runs", "--out", str(tmp_path / "none")]) == 0
    assert "mlxhog train" in capsys.readouterr().out


def test_an_error_of_the_trainer_is_a_message_and_its_exit_code(trainer, monkeypatch, capsys):
    def refuse(config, *, observer, run):
        raise EnvironmentLacks("needs 21.4 GB, has 12.8 GB; lower --batch-size")

    monkeypatch.setattr(trainer, "train", refuse)
    assert main(["train"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "needs 21.4 GB" in err
    assert "Traceback" not in err


def lacking(name):
    def refuse(config):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return refuse


def test_a_package_that_is_lacking_is_named_as_pip_names_it(trainer, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "make_plan", lacking("yaml"))
    assert main(["train", "--dry-run"]) == 3
    assert capsys.readouterr().err.endswith(
        "needs yaml, which is not installed; install it: python -m pip install pyyaml\n"
    )


@each_of("name", ["google", "sklearn", "scipy.special._damaged", "mlxhog.nothing"])
def test_a_broken_import_of_another_package_keeps_its_traceback(trainer, monkeypatch, name):
    monkeypatch.setattr(trainer, "make_plan", lacking(name))
    with pytest.raises(ModuleNotFoundError, match=name):
        main(["train", "--dry-run"])


def test_what_a_lacking_package_is_installed_by_is_the_name_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    needed = {one for key in ("data", "hf", "tensorboard", "ray") for one in optional[key]}
    names = [
        {re.match(r"[\w.-]+", one)[0] for one in ones}
        for ones in ({*project["dependencies"], *needed}, optional["peers"])
    ]
    known = {re.match(r"[\w.-]+", one.strip("'"))[0] for one in PACKAGES.values()}
    assert names[0] <= known <= names[0] | names[1]


def test_ctrl_c_before_the_run_ends_with_130(trainer, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "make_plan", interrupt)
    assert main(["train", "--dry-run"]) == 130


def test_every_mistake_on_the_line_and_in_the_file_is_told_at_once(tmp_path, capsys):
    (tmp_path / "conf.yaml").write_text("lrr: 1\n")
    words = ["--config", str(tmp_path / "conf.yaml"), "--wrokers", "2", "--lr", "fast", "stray"]
    assert main(["train", *words]) == 2
    lines = [line.rpartition("/")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "no flag '--wrokers'; did you mean '--workers'?",
        "unexpected argument 'stray'",
        "conf.yaml:1: no option 'lrr'; did you mean 'lr'?",
        "--lr is 'fast'; wanted a number above 0, or auto",
    ]


@each_of(
    ("words", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["--helf"], "did you mean '--help'?"),
        (["finetune"], "did you mean 'train --init-from RUN'?"),
        (["train", "--lr"], "expected one argument: largest step size"),
        (["train", "tests"], "text is named by a flag: --data tests"),
        (["train", "resume", "latest"], "unexpected argument 'resume'; did you mean '--resume'?\n"),
        (["train", "--model", "5M", "--dry-run"], "did you mean '5m'?"),
        (["train", "--step", "3"], "no flag '--step'; did you mean '--steps'?"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["train", "--resume", "none", "--strategy", "hogwlid"], "did you mean 'hogwild'?"),
        (["generate"], "RUN_OR_CHECKPOINT is missing"),
        (["show"], "RUN is missing: a path, a run's name or a part of it, or latest; as in `mlx"),
        (["runs", "remove", "latest"], "`mlxhog runs rm RUN` removes"),
        (["generate", "latest", "--temp", "-1"], "--temp is '-1'; wanted a number at least 0"),
        (["generate", "latest", "--prompt", "@nowhere.txt"], "nowhere.txt: No such file"),
        (["runs", "--jsno"], "did you mean '--json'?"),
        (["compare", "tiny", "--pairs", "3", "no-such-side"], "no-such-side"),
        (["compare", "tiny", "--pairs", "3", "5m", "--time=5", "10m"], "takes two subjects"),
        (["compare", "--pairs", "3", "--", "--json"], "'--json' is no architecture"),
        (["train", "--steps", "5", "--steps", "6"], "--steps 5 and --steps 6 are the same option"),
        (["train", "--model=5m", "--size", "10m"], "--model=5m and --size 10m are the same option"),
        (["train", "--force", "--force=false"], "--force and --force=false are the same option"),
        (["runs", "--json", "--out", "a", "--json"], "--json and --json are the same option"),
        (["generate", "x", "--temp", "1", "--temp", "2"], "--temp 1 and --temp 2 are the same"),
        (["mad", "bench", "--lr", "1", "--lr=2"], "--lr 1 and --lr=2 are the same option; keep"),
    ],
)
def test_wrong_input_is_answered_with_exit_code_2(words, message, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@each_of(
    "words",
    [
        ["--data", "a b", "c"],
        ["--data", "a b", "--data", "c"],
        ["--data=a b", "--quiet", "--data=c"],
    ],
)
def test_data_takes_several_texts_in_one_flag_or_several(trainer, words, tmp_path):
    (tmp_path / "conf.yaml").write_text("data: [a b, c]\n")
    assert main(["train", *words]) == 0
    assert trainer.config.data == "a b\nc"
    assert yaml.safe_load(trainer.config.to_yaml())["data"] == ["a b", "c"]
    assert main(["train", "--config", str(tmp_path / "conf.yaml")]) == 0
    assert trainer.config.data == TrainConfig(data=["a b", "c"]).data == "a b\nc"
    assert main(["train", "--config", str(tmp_path / "conf.yaml"), "--data", "d"]) == 0
    assert trainer.config.data == "d"


MANY = ("train", "bench", "search")  # commands of mad with many options
LEAVES = [name for name in COMMANDS if name != "mad"] + [f"mad {name}" for name in mad.COMMANDS]


@each_of("name", LEAVES)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"mlxhog {name}" in out
    assert "examples:" in out
    assert "--json" in out


def test_the_help_of_a_command_with_many_options_shows_those_that_matter(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    listed, _, rest = out.partition("main options:")[2].partition("--help-all lists all")
    assert sum(line.startswith("  -") for line in listed.splitlines()) == 15
    assert int(rest.split()[0]) > 100
    assert "--orthogonalization" not in out
    assert max(map(len, listed.splitlines())) <= 80


@pytest.mark.parametrize(
    "name",
    ["train", "analyze", "advise", "classic", "compare", "simulate", *map("mad {}".format, MANY)],
)
def test_every_help_that_is_short_names_a_longer_one(name, capsys):
    shown = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            main([*name.split(), flag])
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    assert "--help-all lists all" in shown[0]
    assert len(shown[1]) > 1.2 * len(shown[0])


def test_help_lists_the_commands_in_groups(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 100
    titles = ["train and use:", "runs:", "while it runs:", "models:", "research:", "set-up:"]
    assert [line for line in out.splitlines() if line in titles] == titles


@pytest.mark.parametrize("words", [["train"], ["runs", "rm"], ["mad", "search"]])
def test_help_of_a_command_is_what_its_flag_prints(words, capsys):
    shown = []
    for arguments in (["help", *words], [*words, "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_the_module_runs_as_a_command_and_tells_its_version():
    process = command("--version")
    assert process.returncode == 0
    assert process.stdout.startswith("mlxhog 0.")


def test_a_reader_that_leaves_early_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "mlxhog", "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


@each_of("words", [["runs"], ["train"], ["doctor", "--json"], ["mad", "board", "x"]])
def test_in_a_folder_that_was_deleted_every_command_is_one_sentence(
    tmp_path, monkeypatch, capsys, words
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(words) == 2
    monkeypatch.chdir(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the current folder cannot be used (No such file or directory)")


def test_a_folder_that_is_deleted_during_a_command_is_one_sentence(
    trainer, tmp_path, monkeypatch, capsys
):
    def delete(*_, **__):
        (tmp_path / "gone").rmdir()
        return os.getcwd()

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(trainer, "make_plan", delete)
    assert main(["train", "--dry-run"]) == 2
    monkeypatch.chdir(tmp_path)
    assert "the current folder cannot be used" in capsys.readouterr().err


def test_a_package_whose_library_cannot_be_loaded_is_not_called_missing(
    trainer, monkeypatch, capsys
):
    def fail(*_, **__):
        path = "/lib/torch/_C.so"
        raise ImportError("libtorch.so: failed to map segment", name="torch._C", path=path)

    monkeypatch.setattr(trainer, "make_plan", fail)
    assert main(["train", "--dry-run"]) == 3
    message = capsys.readouterr().err
    assert "a package cannot be loaded: libtorch.so: failed to map segment" in message
    assert "ulimit -v" in message


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["models"], 3, "the output cannot be written: standard output is closed\n"),
        (["no-command"], 2, "no command 'no-command'"),
    ],
)
def test_a_command_that_only_prints_ends_where_standard_output_is_closed(words, code, message):
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "mlxhog", *words]
    ended = subprocess.run(closed, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr[: len(message)]) == (code, message)


def test_a_fault_of_the_program_shows_no_control_character_to_a_terminal():
    program = """
import sys
import mlxhog.cli
from mlxhog.__main__ import main

def fail(**_):
    raise KeyError("\\x1b]0;title\\x07\\x9b2J")

mlxhog.cli.main = fail
sys.exit(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "title" in ended.stderr
    assert all(c.isprintable() or c == "\n" for c in ended.stderr)
