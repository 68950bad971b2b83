"""The documents name only what exists, and the generated page is what its generator writes."""

import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import TrainConfig, cli
from mlxhog.base import machine
from mlxhog.cli import train
from mlxhog.errors import ConfigError
from mlxhog.training.plan import preview
from mlxhog.training.plan.decide import make_plan
from tests.pairs import each_of
from tests.words import misread_by_zsh

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs" / "generated").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
page = each_of("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
OURS = ("mlxhog", "models", "metal", "tests", "tools", "benchmarks", "examples", "docs", ".ci")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BETWEEN = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'  # quotes


def shell_blocks(text):
    """The lines of each block of shell lines."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks]


def commands(text):
    """Every command line in backquotes or in a block of shell lines, split into words."""
    lines = [line for block in shell_blocks(text) for line in block]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    parts = [part for line in lines for part in re.split(r"(?:&&|;|\|\|)" + BETWEEN, line)]
    ours = [part for part in parts if part.strip().startswith(("python ", "mlxhog ", ".ci/"))]
    return [shlex.split(part, comments=True) for part in ours]


def missing(command):
    """The modules, files and subcommands that a command names and that do not exist."""
    wrong = []
    if command[:2] == ["python", "-m"]:
        module = command[2]
        if module.split(".")[0] in OURS and importlib.util.find_spec(module) is None:
            wrong.append(f"no module {module}")
    if command[0] == "mlxhog" and len(command) > 1 and command[1].islower():
        if command[1] not in (*cli.COMMANDS[""], "help"):
            wrong.append(f"no command mlxhog {command[1]}")
        else:
            wrong += refused(command[1:])
    for word in command:
        path = word.split("::")[0]
        if path.split("/")[0] in OURS and "/" in path and not (ROOT / path).exists():
            wrong.append(f"no file {path}")
    return wrong


def refused(words):
    """Why a line would be refused before it does anything; what it leaves out is not looked at."""
    no_command = words[0] in ("help", *cli.COMMANDS) and " ".join(words[:2]) not in cli.names()
    if no_command or {"--help", "--help-all"} & set(words):
        return []
    end = next((at for at, word in enumerate(words) if re.match(r"[<>|&\[]", word)), len(words))
    try:
        command, rest = cli.find(words[:end])
        command.flags().parse(rest)
    except ConfigError as error:
        leaves_out = re.search(r" is missing: |: expected one argument", str(error))
        return [] if leaves_out else [f"mlxhog {shlex.join(words)}: {error}"]
    return []


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 110


def test_the_page_of_commands_has_every_command():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    rows = "\n".join(re.findall(r"^\|(.*?)\|", text, re.MULTILINE))
    named = set(re.findall(r"`mlxhog (\w+)", rows))
    assert named == set(cli.COMMANDS[""])


def test_only_the_page_that_says_what_the_source_documents_are_names_them_by_number():
    numbered = re.compile(r"[Dd]ocument `?0\d\d")
    naming = {one.name for one in PAGES if numbered.search(one.read_text("utf-8"))}
    assert naming <= {"documents.md"}


def test_every_benchmark_is_in_the_table_of_benchmarks():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == set(re.findall(r"^\|[^|]*\| `(\w+\.py)` \|", text, re.M)) | {"all.py"}


@page
def test_every_command_file_and_link_of_a_page_names_what_exists(page):
    text = page.read_text(encoding="utf-8")
    wrong = [line for each in commands(text) for line in missing(each)]
    names = [word for word in re.findall(r"`([\w./-]+\.\w+)`", text) if word.split("/")[0] in OURS]
    wrong += [name for name in names if not (ROOT / name).exists()]
    for target in re.findall(r"\]\((?!https://)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.is_file():
            wrong.append(f"no file {target}")
        elif anchor and anchor not in anchors(file):
            wrong.append(f"no heading {target}")
    assert not wrong, "\n".join(wrong)


def test_lines_that_record_a_run_name_workers_that_a_mac_without_a_record_of_doctor_takes():
    lines = [line for one in PAGES for line in commands(one.read_text(encoding="utf-8"))]
    recorded = [line for line in lines if {"--determinism", "record"} <= {*line}]
    assert len(recorded) > 1
    for line in recorded:
        assert line[line.index("--workers") + 1] == "mlx:cpu,torch:cpu"


@page
def test_every_shell_block_and_command_of_a_page_can_be_pasted_into_zsh(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^```(bash|console|shell|zsh)$", text, re.MULTILINE), "write ```sh"
    assert [part for block in shell_blocks(text) for part in misread_by_zsh("\n".join(block))] == []
    inline = re.findall(r"`((?:mlxhog|python) [^`\n]+)`", text)
    named = [re.sub(r"\[[-A-Za-z ]+\]", "", line) for line in inline]  # such as [RUN]
    assert [part for line in named for part in misread_by_zsh(line)] == []


def test_a_comment_a_glob_and_an_open_quote_are_what_zsh_misreads():
    for line, misread in {
        "mlxhog runs   # all runs": ["# all runs"],
        "# Claude": ["# Claude"],
        "mlxhog train --workers torch:cpu*2": ["torch:cpu*2"],
        "pip install -e .[test] && pytest": [".[test]"],
        "mlxhog eval notes?/a.txt": ["notes?/a.txt"],
        'mlxhog generate latest --prompt "Hi!"': ['"Hi!"'],
        "mlxhog generate latest --prompt =it": ["=it"],
        "mlxhog serve latest, OpenAI's": ["OpenAI's"],
    }.items():
        assert misread_by_zsh(line) == misread
    taken = ("'a # b' \"c*(d)\" \\* --set a=1 $? $n", "cat <<'END'\nit's [a] # b\nEND\nls")
    assert [misread_by_zsh(text) for text in taken] == [[], []]


def anchors(file):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}


def test_the_page_of_results_answers_in_five_lines_and_each_row_says_when_and_where():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    answer = text.partition("## Is lock-free training worth it?")[2].partition("![")[0]
    assert answer.count("\n- ") == 5
    rows = re.findall(r"^\| .* \| (\[\w+\].*) \|$", text, re.M)
    assert len(rows) > 30
    origin_form = r"\[(\w+)\]\(.*/\1\.json\), [MNS], 20\d\d-\d\d-\d\d"
    for origin in "; ".join(rows).split("; "):
        assert re.fullmatch(origin_form + "(, stale)?(, an earlier default)?", origin)


BESIDE = "S 256, V 256, threads 1: ours, torch / xlstm"
MEASURED = {
    "1.10x": ("schemes", "equal, 2 workers: sync / hogwild, seconds", -1),
    "1.23x": ("schemes", "equal, 4 workers: sync / hogwild, seconds", -1),
    "1.41x": ("many_cores", "8 workers: sync / hogwild, seconds", -1),
    "2.16x": ("many_cores", "16 workers: sync / hogwild, seconds", -1),
    "2.20x": ("schemes", "one 4x slower, 2 workers: sync / hogwild, seconds", 1),
    "1.19x": ("schemes", "random sleeps, 2 workers: sync / hogwild, seconds", 1),
    "1.79 (1.72 to 1.86)": ("model_speed", f"d 128 x 4, B 8, {BESIDE}", 1),
    "1.22 (1.17 to 1.28)": ("model_speed", f"d 512 x 6, B 2, {BESIDE}", 1),
    "4.34 (4.06 to 4.63)": ("model_speed", f"d 128 x 8, sLSTM at (1,), B 8, {BESIDE}", 1),
    "8.17 (7.99 to 8.36)": (
        "model_speed", "decoding one stream, d 128 x 4, threads 1: ours, torch / xlstm", 1,
    ),
}  # fmt: skip
"""Ratio in README -> its result, its claim there, and 1, or -1 where README turns it around."""


def result(name):
    """A recorded result of the benchmarks."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def test_each_ratio_of_readme_is_that_of_its_claim_in_the_results():
    text = README.partition("## Layers for your own models")[2]
    assert set(re.findall(r"\d+\.\d\d(?:x| \(.*? to .*?\))?", text)) == MEASURED.keys()
    for shown, (name, claim, power) in MEASURED.items():
        (one,) = (one for one in result(name)["claims"] if one["name"] == claim)
        values = [one["value"], *one["interval"]][: 3 if "(" in shown else 1]
        assert [f"{value**power:.2f}" for value in values] == re.findall(r"\d+\.\d\d", shown), claim


def test_the_speeds_of_layers_are_the_least_and_the_largest_ratios_of_the_results():
    text = (ROOT / "docs" / "layers.md").read_text("utf-8").partition("## Speed")[2]
    ratios = {one["name"]: one["value"] for one in result("model_speed")["claims"]}
    ends = []
    for form in (r".* V .*threads 1.*/ xlstm", r".* V .*threads 2.*/ xlstm", "decoding.*/ xlstm",
                 ".* mlx / ours, torch"):  # fmt: skip
        values = [value for name, value in ratios.items() if re.fullmatch(form, name)]
        ends += sorted({min(values), max(values)})
    assert re.findall(r"\d\.\d\d", text) == [f"{end:.2f}" for end in ends]


MODELS = (ROOT / "docs" / "models.md").read_text("utf-8")


def test_the_memory_of_a_token_on_the_page_of_models_is_that_of_the_result():
    table = result("memory")["table"]
    large = [row for row in table if row["model"] == "160m"]
    rows = dict(re.findall(r"^\| (\w+, \w+) \| ([\d. |]+) \|$", MODELS, re.MULTILINE))
    assert len(rows) == 3
    for name, cells in rows.items():
        kernels, framework = name.split(", ")
        backend = {"PyTorch": "torch:cpu", "MLX": "mlx:cpu"}[framework]
        own = [row for row in large if (row["backend"], row["kernels"]) == (backend, kernels)]
        options = [(row["dtype"], row["recompute"]) for row in own]
        dtypes = ("float32", "bfloat16")
        assert options == [(dtype, how) for dtype in dtypes for how in ("none", "blocks")]
        assert cells.split(" | ") == [f"{row['KB a token'] / 1e3:.2f}" for row in own]
    worst = max(row["error"] for row in large)
    claims = (ROOT / "benchmarks" / "claims.yaml").read_text("utf-8")
    assert f"it is off by up to {worst:.0%}".replace("%", " %") in claims


def test_the_cost_of_rounded_moments_on_the_page_of_models_is_that_of_the_result():
    costs = {one["name"]: one for one in result("moments")["claims"]}
    shown = []
    for way in ("nearest", "stochastic"):
        one = costs[f"muon, moments rounded: {way}, bits per byte more"]
        low, high = one["interval"]
        shown.append(f"{one['value']:.4f} ({low:.4f} to {high:.4f})")
        ends = costs[f"adamw, moments rounded: {way}, bits per byte more"]["interval"]
        assert max(map(abs, ends)) < 1e-4
    assert re.findall(r"\d\.\d{4} \(.*? to .*?\)", MODELS) == shown


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_sotu")
def test_memory_and_checkpoint_of_presets_are_those_of_a_plan():
    form = r"^\| `(\w+)` \| ([\d.]+) M \| ([\d.]+) GB \| ([\d.]+) (\w)B \|$"
    rows = re.findall(form, MODELS, re.MULTILINE)
    assert len(rows) == 5
    for model, parameters, run_gb, size, unit in rows:
        config = TrainConfig(model=model, workers="mlx:cpu,torch:cpu")
        facts = preview.facts(make_plan(config), config)
        assert float(parameters) == pytest.approx(facts["parameters"] / 1e6, rel=0.002)
        assert run_gb == f"{facts['memory_bytes'] / 1e9:.1f}"
        divisor = {"M": 1e6, "G": 1e9}[unit]
        assert float(size) == pytest.approx(facts["checkpoint_bytes"] / divisor, rel=0.02)


def test_the_largest_model_takes_the_memory_that_help_and_page_name(tmp_path, monkeypatch):
    line = "train --init-from hf:NX-AI/xLSTM-7b --data notes/ --workers 1"
    page = (ROOT / "docs" / "fine-tune.md").read_text("utf-8")
    (of_help,) = re.findall(f"{line}\n.*; (\\d+) GB of memory", train.__doc__)
    (of_page,) = re.findall(r"\[(\d+) GB\]\(generated/expected.md\) with `--workers 1`", page)
    assert f"\nmlxhog {line} --yes\n" in page
    large = replace(machine.here(), memory_bytes=192 * 2**30)
    monkeypatch.setattr(machine, "here", lambda: large)
    (tmp_path / "notes.txt").write_text("The river runs to the sea. " * 1000)
    new = {"set": {"vocab_size": 50304}, "tokenizer": "bytes", "embedding_init": "random"}
    config = TrainConfig(model="7b", data=str(tmp_path), workers=1, **new)
    planned = preview.facts(make_plan(config), config)["memory_bytes"] / 1e9
    assert [float(of_help), float(of_page)] == pytest.approx([planned] * 2, rel=0.05)


def test_what_was_checked_without_a_mac_says_where_a_stand_in_was_checked():
    text = (ROOT / "docs" / "numerics-and-apple.md").read_text("utf-8")
    rows = text.partition("| checked on Linux |")[2].partition("\n\n")[0].splitlines()[2:]
    simulated = 0
    for row in rows:
        named = [ROOT / name for name in re.findall(r"tests/[\w/]+(?:\.py)?", row)]
        files = [file for one in named for file in (one.rglob("*.py") if one.is_dir() else [one])]
        stands_in = re.compile(r"FAKE_METAL|\b[Ss]tand-in for|stands? in for GPU|stand in for the")
        if any(stands_in.search(file.read_text("utf-8")) for file in files):
            simulated += 1
            assert "simulated" in row, row
    assert simulated >= 4


def test_the_staleness_on_the_page_of_parallel_training_is_that_of_the_result():
    text = (ROOT / "docs" / "parallel-training.md").read_text("utf-8")
    rows = [row for row in result("many_cores")["table"] if row["strategy"] == "hogwild"]
    shares = [row["staleness"] / (row["n"] - 1) for row in rows if row["n"] > 1]
    assert f"({min(shares):.2f} to {max(shares):.2f} of it with 2 to 16 workers" in text


def test_every_message_and_docstring_that_sends_to_a_page_names_a_page_that_exists():
    sources = [file for top in ("mlxhog", "models", "metal") for file in (ROOT / top).rglob("*.py")]
    named = {
        name for one in sources for name in re.findall(r"docs/[\w-]+\.md", one.read_text("utf-8"))
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
