"""`--plugin FILE`: layers and tasks of one's own, in one file, for every command.

Files of ours that hold such a layer remember its file, which runs only as the user named it.
"""

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlxhog.base import cache
from mlxhog.config import plugins
from mlxhog.errors import ConfigError
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import Store
from tests.mad.tasks.test_tasks import read
from tests.own_plugins import mlxhog, own_plugins
from tests.training.small import small_config

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYER, TASK = EXAMPLES / "my_layer.py", EXAMPLES / "my_task.py"
SCHEDULE = """
from mlxhog.config.components import SCHEDULES, Component

@dataclass(frozen=True, kw_only=True)
class Halving(Component):
    registry = SCHEDULES
    name: ClassVar[str] = "halving"
"""
SMALL = "--task-set seq_len=9 --task-set train_rows=64 --task-set test_rows=16 --dim 16"


def edited(path, example, *changes):
    """Write an example with other text."""
    text = example.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def ok(folder, line):
    """The last line of JSON of a command that succeeds, or its output."""
    ended = mlxhog(folder, *shlex.split(line))
    assert ended.code == 0, (line, ended.err)
    return json.loads(ended.out.splitlines()[-1]) if "--json" in line else ended.out


def refused(folder, line, *words, code=2):
    """Assert that a command ends with an error that has these words."""
    ended = mlxhog(folder, *shlex.split(line))
    assert ended.code == code, ended.out
    for one in words:
        assert one in ended.err


def test_a_file_with_a_layer_a_task_and_a_schedule_is_named_once(tmp_path):
    (tmp_path / "all.py").write_text(LAYER.read_text() + TASK.read_text() + SCHEDULE)
    how = f"mad train --plugin all.py --layers 'my_layer swiglu' --task MY {SMALL} --steps 2 --json"
    for workers in ("mlx:cpu", "mlx:cpu*2"):
        result = ok(tmp_path, f"{how} --quiet --workers {workers}")
        assert (result["task"], result["status"], result["steps"]) == ("my_task", "done", 2)
    layers = ok(tmp_path, "mad layers --plugin all.py --json")
    (own,) = (one for one in layers if one["name"] == "my_layer")
    assert own["source"] == str(tmp_path / "all.py")
    assert own["numbers"] == {"expand": {"default": 1, "type": "int"}}
    listed = ok(tmp_path, "mad tasks --plugin all.py")
    assert "my_task (MY)  the first half in reverse order" in listed


PLAIN = ("seq_len: int = 17\n", "seq_len: int = 17\n    depth: int | None = 3\n")


def test_the_rows_of_a_task_from_a_file_are_drawn_by_it_and_a_plain_field_is_a_setting(tmp_path):
    edited(tmp_path / "mine.py", TASK, PLAIN)
    rows = "mad data --task my_task --task-set train_rows=20 --output r.npz"
    for value, expected in (("4", 4), ("none", None)):
        ok(tmp_path, f"{rows} --plugin mine.py --task-set depth={value}")
        data = read(tmp_path / "r.npz")
        assert data.meta["depth"] == expected
        np.testing.assert_array_equal(data.train_x[:, :8], data.train_y[:, :8:-1])
    wanted = "depth is 'x'; wanted a whole number, or none"
    refused(tmp_path, f"{rows} --plugin mine.py --task-set depth=x", wanted)
    refused(tmp_path, rows, "no task 'my_task'", "--plugin FILE")


def test_an_own_strategy_has_its_numbers_for_the_workers_of_a_candidate(tmp_path):
    words = f"mad train --layers gated-conv --plugin '{EXAMPLES / 'my_strategy.py'}' --dry-run"
    words += " --workers torch:cpu*2 --dim 16 --strategy"
    ok(tmp_path, f"{words} 'my_strategy(share=0.3)'")
    for strategy in ("hogwild(blocks=disjoint)", "local_sgd(split=dirichlet)"):
        refused(tmp_path, f"{words} '{strategy}'", "is for mlxhog train; leave it out")


def test_a_run_with_another_text_of_the_layer_is_another_run(tmp_path):
    file = edited(tmp_path / "keyed.py", LAYER, ('"my_layer"', '"keyed"'))

    def keys():
        with own_plugins(forgets=True):
            plugins.load(file)
            return [
                StudyDefinition(candidates=(k,)).runs(k)[0].key()
                for k in ("keyed swiglu", "swiglu")
            ]

    keyed, swiglu = keys()
    assert keys() == [keyed, swiglu]
    file.write_text(file.read_text() + "\n# another text\n")
    assert [one == before for one, before in zip(keys(), (keyed, swiglu))] == [False, True]  # noqa: B905


CLASS = "from mlxhog.models.layers.layer import Layer\nclass A(Layer):\n"


@pytest.mark.parametrize(
    ("example", "change", "message"),
    [
        (LAYER, ('"my_layer"', '"mlstm"'), "there is a layer 'mlstm' already"),
        (LAYER, ("expand: int = 1", "expand: tuple = ()"), "expand needs a default and one of"),
        (LAYER, (None, f"{CLASS}    name, kind = 'bad-c', 'norm'"), "its kind is 'norm'; it is"),
        (LAYER, (None, f"{CLASS}    name = 'bad-e'"), "class A: it has no param_spec, forward; "),
        (TASK, ('= "MY"', '= "CR"'), "has a name that is taken"),
        (TASK, (PLAIN[0], f"{PLAIN[0]}    depth: int\n"), "setting depth of task 'my_task' needs"),
    ],
)
def test_a_file_that_adds_no_layer_or_task_is_refused_in_words(tmp_path, example, change, message):
    file = tmp_path / "own.py"
    if change[0] is None:
        file.write_text(change[1])
    else:
        edited(file, example, change)
    with own_plugins(forgets=True), pytest.raises(ConfigError, match=message):
        plugins.load(file)


def test_an_unknown_layer_is_answered_with_the_flag(tmp_path):
    layers = {"layers": [{"type": "mine", "expand": 2}, "swiglu"]}
    config = {"model_type": "mad", "vocab_size": 8, "hidden_size": 16, **layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "mad show config.json", "no layer 'mine'", "--plugin FILE")
    edited(tmp_path / "mine.py", LAYER, ('"my_layer"', '"mine"'))
    shown = ok(tmp_path, "mad show config.json --plugin mine.py --json")
    assert shown["layers"] == "mine(expand=2) swiglu"


@pytest.mark.parametrize(
    "command",
    [
        'mad train --layers "undeclared swiglu" --workers mlx:cpu*2 --task CR --dim 16 --steps 2',
        'parity "undeclared swiglu" --seq-len 9 --steps 0',
    ],
)
def test_a_parameter_that_a_layer_reads_and_does_not_declare_is_refused_in_words(command, tmp_path):
    wrong = ('ones_like(p["z_proj.bias"]', 'ones_like(p["z_proj.bia"]')
    edited(tmp_path / "undeclared.py", LAYER, ('"my_layer"', '"undeclared"'), wrong)
    refused(
        tmp_path, f"{command} --plugin undeclared.py",
        "layer undeclared reads the parameter 'z_proj.bia', which its param_spec does not declare "
        "(it declares v_proj.weight, ",
        "read another one; did you mean 'z_proj.bias'?\n",
    )  # fmt: skip


NEVER = "you have never named that file"
OTHER = "is not the version that was remembered"


def test_a_file_is_remembered_by_its_digest_and_refused_when_it_changed_or_is_gone(tmp_path):
    file, show = edited(tmp_path / "my_layer.py", LAYER), "mad show w.yaml --json"
    words = "mad deepen 'my_layer swiglu' --depth 2 --dim 16 --output w.yaml --plugin my_layer.py"
    ok(tmp_path, words)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    remembered = yaml.safe_load((tmp_path / "w.yaml").read_text())["plugin"]
    assert remembered == [f"{file} sha256:{digest}"]
    ended = mlxhog(tmp_path, *show.split())
    assert json.loads(ended.out)["layers"] == "my_layer swiglu"
    assert ended.err == f"plugin {file}\n"
    (note,) = (cache.user_cache_directory() / "named-files").iterdir()
    note.chmod(0o666)
    refused(tmp_path, show, "not trusted: it can be written by others", code=3)
    note.chmod(0o600)
    moved = file.rename(tmp_path / "moved.py")
    gone = "cannot read it: No such file or directory; give its place: --plugin FILE"
    refused(tmp_path, show, f"{file}: {gone}")
    refused(tmp_path, f"{show} --plugin moved.py", code=0)
    file.write_text(moved.read_text() + "# edited\n")
    refused(tmp_path, show, f"{file} has changed since it was remembered", f"--plugin {file}")
    refused(tmp_path, f"{show} --plugin '{file}'", OTHER, code=0)


EVIL = LAYER.read_text() + "\nfrom pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize(
    ("form", "words", "edited"),
    [
        ("w.yaml", "mad show w.yaml", "has changed"),
        ("config.json", "mad show config.json", "has changed"),
        ("conf.yaml", "train --config conf.yaml --dry-run --workers mlx:cpu", f"{NEVER}, as it"),
    ],
)
def test_what_comes_from_elsewhere_runs_a_file_only_as_it_was_named_before(
    tmp_path, form, words, edited
):
    file = tmp_path / "evil.py"
    file.write_text(EVIL)
    small_config(tmp_path)  # writes a text
    layers = {"layers": ["my_layer", "swiglu"], "vocab_size": 8}
    named = {"plugin": [f"{file} sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"]}
    whole = {
        "w.yaml": layers | named,
        "config.json": {"model_type": "mad", "hidden_size": 16, **layers, **named},
        "conf.yaml": {"model": "arch.yaml", "data": "text", "plugin": "evil.py"},
    }
    (tmp_path / "arch.yaml").write_text("{dim: 16, layers: [my_layer, swiglu]}")
    (tmp_path / form).write_text(json.dumps(whole[form]))
    refused(tmp_path, words, NEVER)
    assert not (tmp_path / "ran").exists()
    ok(tmp_path, "mad show arch.yaml --plugin evil.py")
    assert (tmp_path / "ran").exists()
    ok(tmp_path, words)
    file.write_text(EVIL + "# edited\n")
    refused(tmp_path, words, edited)


@pytest.mark.slow
def test_a_study_and_a_run_remember_their_files_for_every_later_command(tmp_path):
    """Also in a folder whose name has a comma, which divides the files that are named."""
    folder = tmp_path / "a, b"
    folder.mkdir()
    file = edited(folder / "own.py", LAYER)
    file.write_text(file.read_text() + TASK.read_text())
    small_config(folder)  # writes a text
    space = "space: {depth: 2, mixers: [my_layer], channels: [swiglu], dim: 16}"
    (folder / "space.yaml").write_text(space)
    search = "mad search --space space.yaml --tasks CR,my_task --steps 2 --study s --backend mlx"
    small = "--workers mlx:cpu*2 --seq-len 32 --batch-size 1 --data text --val-subset-tokens 512"
    resume = "train --resume latest --steps 2 --quiet"
    for line in (
        f"{search} --parallel 1 --plugin own.py",
        "mad consensus s --output w.yaml",
        f"{search} --parallel 1 --plugin own.py",
        f"train --model w.yaml {small} --steps 2 --quiet",
        resume,
        "eval latest --data space.yaml --backend mlx:cpu",
        "convert latest copy --format mlxhog --check",
    ):
        ok(folder, line)
    tasks = {one.task for one in Store(folder / "studies" / "s").records()}
    assert tasks == {"in-context-recall", "my_task"}
    file.write_text(file.read_text() + "# edited\n")
    refused(folder, "mad resume s --plugin own.py", f"made with another version of {file}")
    ok(folder, "mad leaderboard s --plugin own.py")
    refused(folder, resume)
    refused(folder, f"{resume} --plugin own.py", OTHER, code=0)
