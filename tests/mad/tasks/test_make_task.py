"""Data sets of all tasks: dependence of their rows, and impossible settings."""

import numpy as np
import pytest

from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import BENCHMARK, IGNORED, TASKS_BESIDE, find, make_task, resolve
from tests.pairs import each_of

TASKS = {**BENCHMARK, **TASKS_BESIDE}
SMALL = {"train_rows": 600, "test_rows": 40, "val_rows": 30}


def same(a, b):
    return all(
        np.array_equal(x, y)
        for split, arrays in a.splits().items()
        for x, y in zip(arrays, b.splits()[split], strict=True)
    )


@each_of("name", TASKS)
def test_a_task_goes_by_its_full_and_its_short_name_in_any_case(name):
    task = TASKS[name]
    assert find(name.upper()) is task
    assert find(task.short.lower()) is task


def test_a_task_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'memorization'"):
        find("memorisation")
    with pytest.raises(ConfigError, match=r"known are in-context-recall \(CR\), "):
        find("xyz")


@each_of("name", TASKS)
def test_one_seed_draws_the_same_rows_and_another_one_others(name):
    a = make_task(name, seed=1, **SMALL)
    assert same(a, make_task(name, seed=1, **SMALL))
    b = make_task(name, seed=2, **SMALL)
    for split in ("train", "test", "val"):
        assert not np.array_equal(a.splits()[split][0], b.splits()[split][0])


@each_of("name", TASKS)
def test_splits_share_no_stream_and_a_smaller_set_is_the_beginning_of_a_larger_one(name):
    data = make_task(name, **SMALL)
    part = make_task(name, train_rows=100, test_rows=40, val_rows=30)
    np.testing.assert_array_equal(part.train_x, data.train_x[:100])
    np.testing.assert_array_equal(part.test_x, data.test_x)
    rows = {x.tobytes() for x in data.train_x}
    assert not rows & {x.tobytes() for x in (*data.test_x, *data.val_x)}


@each_of("name", TASKS)
def test_rows_are_int32_of_the_length_that_the_settings_name(name):
    data, settings = make_task(name, **SMALL), resolve(name, SMALL)
    for split, (x, y) in data.splits().items():
        assert x.dtype == y.dtype == np.int32
        length = settings.length if split == "train" else settings.test_length
        assert x.shape == y.shape == (SMALL[f"{split}_rows"], length)
        assert x.min() >= 0
        assert max(x.max(), y.max()) < settings.vocab
        assert ((y == IGNORED) | (y >= 0)).all()


def test_settings_may_be_text_and_go_by_the_names_of_the_files():
    settings = resolve("CR", {"vocab_size": "1k", "num_train": "10", "multi_query": "false"})
    assert (settings.vocab, settings.train_rows, settings.multi_query) == (1000, 10, False)


@each_of("name", TASKS)
def test_a_negative_number_of_any_setting_is_refused_by_its_name(name):
    for setting, one in options(TASKS[name]).items():
        if type(one.default) in (int, float):
            with pytest.raises(ConfigError, match=setting):
                resolve(name, {setting: -1})


@each_of(
    ("task", "settings", "message"),
    [
        ("SC", {"seq_len": 33}, "16 tokens, as many answers, the marker and a blank: at least 34"),
        ("C", {"frac_noise": 0.5}, "noise_vocab is 0; noise needs tokens of its own: at least 1"),
        ("M", {"seq_len": 31}, "at least 2, in steps of 2"),
        (
            "FR",
            {"vocab": 6},
            "from a half of the vocabulary each, beside 1 special ones: at least 7",
        ),
        ("FR", {"seq_len": 12}, "a pair of 6 tokens must fit in twice: at least 13"),
        ("FR", {"vocab": 5000, "k_motif": 8}, "keys are numbered in 63 bits: at most 5"),
        ("ST", {"group": "S6"}, "wanted one of parity, Z60, S3, A5, S5"),
        ("ST", {"group": "S3", "vocab": 7}, "the task has 6 tokens; leave it out"),
        ("ST", {"test_length": 39}, "the rows to train on are as long: at least 40"),
        ("NR", {"vocab": 17}, "beside 16 for noise and the copy marker: at least 18"),
        ("NR", {"noise_vocab": 0}, "noise needs tokens of its own: at least 1"),
        ("CR", {"frac_noise": 0.2}, "no option 'frac_noise'"),
        ("CR", {"wocab": 16}, "did you mean 'vocab'?"),
        (
            "SG",
            {"vocab": 30},
            "4 to begin a string: at least 17, in steps of 4",
        ),
        ("SG", {"density": 1e-4, "vocab": 401, "depth": 100}, "or a smaller depth"),
        ("MQAR", {"n_pairs": 17}, "two tokens each: at least 68, in steps of 2"),
        ("MQAR", {"seq_len": 33}, "two tokens each: at least 16, in steps of 2"),
        ("MQAR", {"n_pairs": 16, "vocab": 33}, "16 values in its second half: at least 34"),
        ("depo", {"vocab": 12}, "8 names beside 2 hops and three markers: at least 13"),
        ("depo", {"queries": 9}, "nodes is 8; each query of a row starts at its own: at least 9"),
        ("depo", {"seq_len": 55}, "8 edges of 3 tokens and 8 queries of 4: at least 56"),
        ("mano", {"vocab": 13}, "2 lengths and two markers: at least 14"),
        ("mano", {"seq_len": 7}, "a problem of 2 operations"),
    ],
)
def test_sizes_that_do_not_fit_together_are_answered_with_what_is_allowed(task, settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_task(task, **settings)
    assert message in str(refusal.value)
