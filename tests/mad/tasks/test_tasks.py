"""Every task of the registry: its rows follow from a seed, its targets from the task's rule.

The distributions of inputs were compared with those of the references' generators (zoology at
d88d6f5, PhysicsLM4 at 7580696) when the digests were recorded: the rows have not changed since.
"""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import IGNORED, Dataset, find, known, make_task, resolve
from mlxhog.mad.tasks.dataset import write
from tests.mad.tasks.answers import expected
from tests.pairs import each_of

GOLDEN = Path(__file__).parents[1] / "golden"
FEW = {"train_rows": 130, "test_rows": 70, "val_rows": 30}
CASES = [
    ("CR", {"seq_len": 32}),
    ("CR", {"vocab": 17, "multi_query": False, "seq_len": 32}),
    ("CR", {"vocab": 3, "seq_len": 4}),
    ("NR", {"frac_noise": 0.8, "seq_len": 64}),
    ("NR", {"vocab": 33, "multi_query": False, "seq_len": 16}),
    ("FR", {"seq_len": 64}),
    ("FR", {"seq_len": 13}),
    ("FR", {"vocab": 17, "multi_query": False, "k_motif": 2, "v_motif": 2, "seq_len": 48}),
    ("FR", {"vocab": 30, "noise_vocab": 8, "frac_noise": 0.3, "seq_len": 48}),
    ("FR", {"fuzzy_compat": True, "seq_len": 40}),
    ("SC", {"seq_len": 64, "tokens_to_copy": 8}),
    ("SC", {"vocab": 3, "seq_len": 8, "tokens_to_copy": 1}),
    ("C", {}),
    ("C", {"vocab": 20, "noise_vocab": 5, "frac_noise": 0.3}),
    ("M", {}),
    ("M", {"vocab": 40, "noise_vocab": 9, "frac_noise": 0.4, "seq_len": 8}),
    ("MQAR", {}),
    ("MQAR", {"vocab": 4, "n_pairs": 1, "seq_len": 4}),
    ("MQAR", {"vocab": 8192, "n_pairs": 64, "seq_len": 512, "random_fill": True}),
    ("SG", {}),
    ("SG", {"vocab": 2, "depth": 1, "starts": 1, "seq_len": 2}),
    ("SG", {"vocab": 1601, "depth": 40, "seq_len": 200, "gap_start": 50, "gap_prob": 0.3}),
    *(("ST", {"group": group, "test_length": 90}) for group in ("parity", "Z60", "S3", "A5", "S5")),
    ("Dyck", {"test_length": 300}),
    ("Dyck", {"kinds": 1, "depth": 1, "seq_len": 30, "test_length": 64}),
    ("Dyck", {"kinds": 9, "depth": 12, "test_length": 300}),
    ("depo", {}),
    ("depo", {"marked": False, "nodes": 5, "hops": 7, "queries": 2}),
    ("depo", {"nodes": 3, "hops": 1, "queries": 1, "vocab": 7, "seq_len": 13}),
    ("mano", {}),
    ("mano", {"operations": 10, "modulus": 23, "vocab": 64, "seq_len": 24}),
    ("mano", {"operations": 1, "modulus": 2, "vocab": 8, "seq_len": 6}),
]
tasks = each_of("task", known().values(), ids=lambda task: task.name)


def check_targets(settings, data, *, dense=True):
    for split, (inputs, targets) in data.splits().items():
        for x, y in zip(inputs.tolist(), targets.tolist(), strict=True):
            assert y == expected(settings, x, y, data, train=dense and split == "train")


def rows(data):
    """The bytes of every array but the metadata."""
    return {
        name: array.tobytes()
        for name, array in vars(data).items()
        if name != "meta" and array is not None
    }


def read(path):
    """The data set of a file, of a reference or of ours."""
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    meta = json.loads(str(stored.pop("meta")))
    ends = {"_inputs": "_x", "_targets": "_y"}
    for end, short in ends.items():
        stored = {name.replace(end, short): values for name, values in stored.items()}
    names = {field.name for field in fields(Dataset)} & stored.keys()
    return Dataset(**{name: stored[name].astype(np.int32) for name in names}, meta=meta)


RECORDED = json.loads((GOLDEN / "rows.json").read_text())
"""Digest of the rows of each case with seed 0."""


@each_of("seed", [0, 1, 2])
@each_of(("task", "settings"), CASES)
def test_rows_are_the_recorded_ones_and_targets_follow_from_inputs(task, settings, seed):
    data = make_task(task, seed=seed, **FEW, **settings)
    check_targets(resolve(task, {**FEW, **settings}), data)
    if seed == 0:
        every = b"".join(part.tobytes() for arrays in data.splits().values() for part in arrays)
        digest = hashlib.sha256(every).hexdigest()[:12]
        assert digest == RECORDED[f"{task} {json.dumps(settings)}"]


@each_of(("task", "settings"), [case for case in CASES if case[0] in ("CR", "NR", "FR")])
def test_scored_labels_train_on_the_same_rows_where_an_answer_can_be_known(task, settings):
    dense, scored = (make_task(task, **FEW, **settings, labels=one) for one in ("dense", "scored"))
    assert np.array_equal(dense.train_x, scored.train_x)
    check_targets(resolve(task, {**FEW, **settings}), scored, dense=False)


@each_of("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_targets_of_the_references_follow_the_same_rules(name):
    data = read(GOLDEN / f"{name}.npz")
    task = data.meta["task"]
    named = options(find(task)).items()
    keys = {name: key for name, one in named for key in (name, *one.aliases) if key in data.meta}
    settings = resolve(task, {name: data.meta[key] for name, key in keys.items()})
    if task == "fuzzy-in-context-recall":
        settings = replace(settings, fuzzy_compat=True)
    check_targets(settings, data)


SMALL = {"train_rows": 600, "test_rows": 40, "val_rows": 30}


@tasks
def test_a_task_goes_by_both_names_in_any_case_and_refuses_a_negative_number_by_its_name(task):
    assert find(task.name.upper()) is find(task.short.lower()) is task
    for setting, one in options(task).items():
        if type(one.default) in (int, float):
            with pytest.raises(ConfigError, match=setting):
                resolve(task.name, {setting: -1})


@tasks
def test_one_seed_draws_the_same_rows_and_a_smaller_set_is_the_beginning_of_a_larger_one(task):
    data, settings = make_task(task.name, seed=1, **SMALL), resolve(task.name, SMALL)
    assert rows(data) == rows(make_task(task.name, seed=1, **SMALL))
    assert not rows(data).items() & rows(make_task(task.name, seed=2, **SMALL)).items()
    part = make_task(task.name, seed=1, **{**SMALL, "train_rows": 100})
    np.testing.assert_array_equal(part.train_x, data.train_x[:100])
    np.testing.assert_array_equal(part.test_x, data.test_x)
    trained = {x.tobytes() for x in data.train_x}
    assert not trained & {x.tobytes() for x in (*data.test_x, *data.val_x)}
    for split, (x, y) in data.splits().items():
        assert x.dtype == y.dtype == np.int32
        length = settings.length if split == "train" else settings.test_length
        assert x.shape == y.shape == (SMALL[f"{split}_rows"], length)
        assert x.min() >= 0
        assert max(x.max(), y.max()) < settings.vocab
        assert ((y == IGNORED) | (y >= 0)).all()


@tasks
def test_a_file_reads_back_as_it_was_written(task, tmp_path):
    data = make_task(task.name, train_rows=20, test_rows=10, val_rows=5)
    write(tmp_path / "a.npz", data)
    with np.load(tmp_path / "a.npz") as file:
        assert {file[key].dtype for key in file.files if key != "meta"} == {np.dtype(np.int16)}
    again = read(tmp_path / "a.npz")
    assert (again.meta, rows(again)) == (data.meta, rows(data))


def test_mad_data_writes_the_same_whole_file_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = (
        "mad data --task in-context-recall --task-set vocab=16 --task-set seq_len=32 --output {}"
    )
    (tmp_path / "b.npz").write_text("old")
    for name in ("a.npz", "b.npz"):
        assert main([*words.format(name).split(), "--json"]) == 0
    output = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (output["train_rows"], output["test_rows"], output["length"]) == (12_800, 1_280, 31)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert read(tmp_path / "a.npz").train_x.shape == (12_800, 31)


def test_settings_may_be_text_and_go_by_the_names_of_the_files():
    settings = resolve("CR", {"vocab_size": "1k", "num_train": "10", "multi_query": "false"})
    assert (settings.vocab, settings.train_rows, settings.multi_query) == (1000, 10, False)


@each_of(
    ("task", "settings", "message"),
    [
        ("memorisation", {}, "did you mean 'memorization'"),
        ("SC", {"seq_len": 33}, "at least 34"),
        ("C", {"frac_noise": 0.5}, "noise_vocab is 0; noise needs tokens of its own: at least 1"),
        ("M", {"seq_len": 31}, "at least 2, in steps of 2"),
        ("FR", {"vocab": 6}, "at least 7"),
        ("FR", {"seq_len": 12}, "at least 13"),
        ("FR", {"vocab": 5000, "k_motif": 8}, "at most 5"),
        ("ST", {"group": "S3", "vocab": 7}, "the task has 6 tokens; leave it out"),
        ("ST", {"test_length": 39}, "at least 40"),
        ("NR", {"vocab": 17}, "at least 18"),
        ("NR", {"noise_vocab": 0}, "at least 1"),
        ("CR", {"frac_noise": 0.2}, "no option 'frac_noise'"),
        ("SG", {"vocab": 30}, "at least 17, in steps of 4"),
        ("SG", {"density": 1e-4, "vocab": 401, "depth": 100}, "or a smaller depth"),
        ("MQAR", {"n_pairs": 17}, "at least 68, in steps of 2"),
        ("MQAR", {"n_pairs": 16, "vocab": 33}, "at least 34"),
        ("depo", {"vocab": 12}, "at least 13"),
        ("depo", {"queries": 9}, "nodes is 8; each query of a row starts at its own: at least 9"),
        ("depo", {"seq_len": 55}, "at least 56"),
        ("mano", {"vocab": 13}, "at least 14"),
        ("mano", {"seq_len": 7}, "a problem of 2 operations"),
    ],
)
def test_sizes_that_do_not_fit_together_are_answered_with_what_is_allowed(task, settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_task(task, **settings)
    assert message in str(refusal.value)
