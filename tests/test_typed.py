"""What README and the pages of docs/ tell a reader to type works, typed in their order.

Budgets are smaller, and a run without `--data` trains on a small folder. What nobody can type here
is in `ELSEWHERE`. A command in a sentence that lacks an argument, or has RUN or FILE for one, is a
name or a form, and is typed where a block has it whole. `tests/test_docs.py` parses all of them.
"""

import dataclasses
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

import mlxhog
import mlxhog.mad
from mlxhog import cli
from tests.another_process import Program
from tests.own_plugins import Ended
from tests.own_plugins import mlxhog as run_here

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", *(f"docs/{one.name}" for one in sorted(ROOT.glob("docs/*.md"))))
}
ALL = "\n".join(PAGES.values())
TYPED = re.compile(r"^```(sh|python)\n(.*?)^```|`((?:mlxhog|python) [^`\n]+)`", re.M | re.S)
FORM = re.compile(r"\b[A-Z]{3,}\b|\[|\.\.\.|\|o|-c$|--(model|prompt-file)$|^mlxhog parity$")
ELSEWHERE = {
    "git clone URL": "no address yet",
    "python3 -m venv": "tests/test_packaging.py and .ci/run install",
    "python -m pip": "the network",
    "python -m pytest": "the suite",
    "python -m tests.models": "tests/models/test_recorded.py",
    "python -m tools.": "tests/tools, tests/metal",
    "python benchmarks/": "tests/benchmarks runs every script",
    "python examples/": "tests/examples",
    "mlxhog cache clear": "it would remove what tests share: tests/cli/test_cache.py",
    "mlxhog doctor --report": "minutes: tests/doctor/test_report.py",
    "mlxhog research advise 7to1-tiny": "minutes; the line behind it is the same command",
    "mlxhog cluster start": "several machines and a token: tests/cluster, tests/soak/cluster.py",
    "mlxhog train --cluster": "several machines and a token: tests/cluster, tests/soak/cluster.py",
    "for n in 0 1; do numactl": "NUMA nodes",
    "mlxhog train --init-from hf:": "27 GB of the hub: tests/checkpoint/test_hub.py",
    "mlxhog parity gla --side": "a file of one's own: tests/parity/test_sides.py",
    "mlxhog mad search --suite lm": "minutes: tests/mad/study/test_text.py",
    "hf upload": "the network",
}
"""How the lines begin that are not typed, and why."""

NO_TIME = {"--time": None, "--tokens": None, "--epochs": None}
SMALL = {"--batch-size": "1", "--seq-len": "32", "--threads": "1"}
STUDY = {"--steps": "2", "--dim": "16", "--tasks": "in-context-recall", "--suite": "smoke"}
SMALLER = {
    "train": {**NO_TIME, **SMALL, "--steps": "3"},
    "compare": {**NO_TIME, **SMALL, "--tokens": "1k", "--val-subset-tokens": "1k", "--pairs": "2"},
    "generate": {"--max-new-tokens": "5"},
    "dashboard": {"--port": "0"},
    "doctor": {"--quick": ""},
    "parity": {"--batch-size": "1", "--seq-len": "9", "--steps": "1", "--kernels": "auto"},
    "mad train": {"--steps": "2", "--dim": "16", "--batch-size": "8"},
    "mad search": STUDY,
    "mad bench": {**STUDY, "--tasks": "dyck", "--suite": "state"},
    "research advise": {"--measure": "0.1", "--no-trial": "", **SMALL},
    "research analyze": {"--samples": "12", "--time": "0", **SMALL},
    "research simulate": {"--updates": "200"},
    "research classic": {"--size": "200", "--epochs": "1"},
}
"""Command -> its flags with small values; None takes a flag away."""
UNLESS = {
    "train": {"--workers": "mlx:cpu", "--data": "notes/"},
    "compare": {"--workers": "mlx:cpu", "--data": "notes/"},
    "research advise": {"--data": "notes/"},
    "research analyze": {"--data": "notes/"},
    **dict.fromkeys(("generate", "eval", "serve"), {"--backend": "mlx:cpu"}),
}
"""Command -> flags that it gets if it has no such flag."""

SMALL_OPTIONS = {"steps": 3, "batch_size": 1, "seq_len": 32, "threads": 1, "time": None}
LASTS = re.compile(r"--follow new$|--time 2h|^mlxhog (serve|dashboard|watch)")
GOES_ON = re.compile(r"http|^step |waiting for")
"""Commands that run while further lines are typed, and what they print when one can go on."""
BEFORE = {
    "docs/fine-tune.md": ("mlxhog train --name first",),
    "docs/models.md": ("mlxhog train --name first",),
    "docs/parallel-training.md": ("mlxhog train --name first",),
    "docs/reference.md": ("mlxhog train --name first",),
    "docs/training.md": ("mlxhog train --name first",),
}
"""What the readers of a page have done before it."""


def typed(page):
    """The lines of shell and the blocks of Python of a page, with their language."""
    for found in TYPED.finditer(PAGES[page]):
        if found[1] == "python":
            yield "python", found[2]
        elif found[1]:
            yield from (("sh", line) for line in found[2].splitlines())
        elif not (FORM.search(found[3]) or f"\n{found[3]}" in ALL or is_name(found[3])):
            yield "sh", found[3]


def is_name(line):
    """Whether a command in a sentence lacks what it needs."""
    words = shlex.split(line)[1:]
    if line.startswith("python"):
        return words == ["-c"]
    if " ".join(words[:2]) not in cli.names() and words[0] not in cli.names():
        return words[0] != "help" and len(words) == 1
    command, rest = cli.find(words)
    try:
        command.flags().parse(rest)
    except mlxhog.ConfigError as error:
        return "is missing: " in str(error)
    except SystemExit:  # of --help
        return False
    return False


def smaller(line):
    """The words of a command, with a smaller budget."""
    words = shlex.split(line)
    _, *rest = words
    name = next((one for one in (" ".join(rest[:2]), rest[0]) if one in cli.names()), "")
    if words[0] != "mlxhog" or name not in {*SMALLER, *UNLESS} or "--help" in words:
        return words
    unless = UNLESS.get(name, {})
    if "--resume" in words:
        unless = {flag: value for flag, value in unless.items() if flag != "--data"}
    wanted = {flag: value for flag, value in unless.items() if flag not in words}
    small = SMALL if "2h" in words or "--follow" in words else SMALLER.get(name, {})
    for flag, value in (small | wanted).items():
        if flag in words:
            at = words.index(flag)
            del words[at : at + (1 if value == "" else 2)]
        words += [] if value is None else [flag, value] if value else [flag]
    return words


class Reader:
    """Types lines in a folder; what does not end goes on until `stop`, or until it has ended."""

    def __init__(self, port):
        self.port, self.running = str(port), []

    def type(self, line):
        """Type a line and return how it ended, or None while it goes on."""
        line = line.replace("8321", self.port)
        line = re.sub(r"hogwild(?= |$)", "hogwild --workers torch:cpu*3", line)
        line = re.sub(r"\d{8}-\d{6}-sotu", self.newest, line)
        words = smaller(line)
        if LASTS.search(line):
            if words[1] == "serve":
                words += ["--port", self.port] * ("--port" not in words)
            program = Program(*words[1:])
            self.running.append(program)
            stream = program.stderr if words[1] == "train" else program.stdout
            if words[1] != "watch":
                assert any(GOES_ON.search(one) for one in iter(stream.readline, "")), line
            return None
        if words[0] == "mlxhog" and words[1] != "chat" and not re.search(r"[>|&]", line):
            ended = run_here(".", *words[1:])
            if words[1:] == ["stop", "latest"]:
                self.running[-1].communicate(120)
            return ended
        return in_a_shell(line)

    def newest(self, _):
        """Name the newest run; one that goes on, if there is one."""
        runs = Path("runs").glob("*")
        return max(runs, key=lambda run: ((run / "socket").exists(), run.stat().st_mtime)).name

    def stop(self):
        """Press Ctrl-C in what goes on; return the exit codes."""
        for program in self.running:
            program.send_signal(signal.SIGINT)
        for program in self.running:
            program.communicate(120)
        return [program.returncode for program in self.running]


IN_A_SHELL = f"""
mlxhog() {{ {shlex.quote(sys.executable)} -m mlxhog "$@"; }}
python() {{ {shlex.quote(sys.executable)} "$@"; }}
nc() {{ python -c '
import socket, sys
with socket.socket(socket.AF_UNIX) as own:
    own.connect(sys.argv[1])
    own.sendall(sys.stdin.buffer.read())
    print(own.makefile().readline())
' "$2"; }}
"""
"""What a shell of a reader has: the programs of this environment, and Unix sockets by `nc -U`."""


def in_a_shell(line):
    """Run a line of shell; a command of ours in it has a smaller budget, too."""
    parts = re.split(r" (&&|>) ", line)
    parts = [shlex.join(smaller(one)) if one.startswith("mlxhog ") else one for one in parts]
    ended = subprocess.run(
        ["bash", "-c", IN_A_SHELL + " ".join(parts)], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def small_train(train, *given, **options):
    """`mlxhog.train` or `compare` with a smaller budget."""
    if given and isinstance(given[0], mlxhog.TrainConfig):
        return train(dataclasses.replace(given[0], workers="mlx:cpu", **SMALL_OPTIONS))
    is_own = "resume" in options or (given and isinstance(given[0], str))
    unless = {"workers": "mlx:cpu"} if is_own else {"workers": "mlx:cpu", "data": "notes/"}
    return train(*given, **{**unless, **options, **SMALL_OPTIONS})


ONCE = {"mlxhog doctor"}
"""Lines of several pages that do the same in every folder."""


@pytest.fixture(scope="module")
def worked():
    """Those that have worked on a page, and need not be typed again."""
    return set()


@pytest.fixture
def short_path():
    """A new folder, with a path that leaves room for the socket of a run in it."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-") as name:
        yield Path(name)


@pytest.fixture
def folder(short_path, monkeypatch):
    """A reader's folder, with files as pages name them."""
    words = "the river runs to the sea and the sea returns it as rain".split()
    for number in range(12):
        text = " ".join(words[(k * (number + 3)) % len(words)] for k in range(900))
        notes = short_path / "notes"
        notes.mkdir(exist_ok=True)
        (notes / f"{number}.txt").write_text(text)
    (short_path / "letter.txt").write_text("The river runs. " * 40)
    rows = [{"prompt": f"The {word} is", "completion": f" {word}."} for word in {*words}] * 2
    for name in ("pairs.jsonl", "examples.jsonl"):
        (short_path / name).write_text("\n".join(map(json.dumps, rows)))
    for name, rate in ("mine.yaml", 1e-3), ("theirs.yaml", 2e-3), ("conf.yaml", 1e-3):
        (short_path / name).write_text(f"model: tiny\ndata: notes/\nlr: {rate}\n")
    (short_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(short_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(mlxhog, "train", partial(small_train, mlxhog.train))
    monkeypatch.setattr(mlxhog, "compare", partial(small_train, mlxhog.compare, pairs=2))
    monkeypatch.setattr(mlxhog, "parity", partial(mlxhog.parity, seq_len=9, steps=1))
    monkeypatch.setattr(mlxhog.mad, "search", partial(mlxhog.mad.search, steps=2, dim=16))
    return short_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("folder", "sides_here")
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_every_line_of_python_of_a_page_works(page, worked):
    with socket.create_server(("127.0.0.1", 0)) as free:
        reader = Reader(free.getsockname()[1])
    names = {"mlxhog": mlxhog}
    try:
        for language, text in (*(("sh", line) for line in BEFORE.get(page, ())), *typed(page)):
            if language == "python":
                text = text.replace("8321", reader.port)
                exec(compile(text, page, "exec"), names)
            elif text and text not in worked and not text.startswith(tuple(ELSEWHERE)):
                ended = reader.type(text)
                code = int("--perturb" in text)  # it shows that the comparison can fail
                assert ended is None or ended.code == code, f"{text}\n{ended}"
                worked |= ONCE & {text}
    finally:
        codes = reader.stop()
    assert {*codes} <= {0, 130}


def test_every_command_that_pages_name_is_typed_on_one_of_them():
    lines = [text for page in PAGES for language, text in typed(page) if language == "sh"]
    for start in ELSEWHERE:
        assert any(line.startswith(start) for line in lines), f"no page has {start}"
    named = {name for name in cli.names() for page in PAGES.values() if f"`mlxhog {name}" in page}
    words = [" ".join(shlex.split(line)[1:3]) for line in lines if line]
    missing = {name for name in named if not any(f"{one} ".startswith(f"{name} ") for one in words)}
    assert missing == set()


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_sotu")
def test_the_page_of_models_has_the_sizes_that_a_dry_run_prints():
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) M \| ([\d.]+) GB \| ([\d.]+) ([MG]B) \|$", page, re.M
    )
    assert len(rows) == 5
    for name, parameters, memory, saved, unit in rows:
        words = "--workers mlx:cpu,torch:cpu --threads 1 --dry-run --json"
        plan = json.loads(run_here(".", "train", "--model", name, *words.split()).out)
        assert plan["parameters"] / 1e6 == pytest.approx(float(parameters), rel=0.01)
        assert plan["memory_bytes"] / 1e9 == pytest.approx(float(memory), rel=0.05)
        in_bytes = float(saved) * {"MB": 1e6, "GB": 1e9}[unit]
        assert plan["checkpoint_bytes"] == pytest.approx(in_bytes, rel=0.05)
