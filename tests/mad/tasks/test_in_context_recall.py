"""In-context recall with and without noise: sequences and scored positions."""

import math

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import IGNORED, make_task


def whole(x, y):
    return np.concatenate([x, y[:, -1:]], axis=1)


@pytest.mark.parametrize("seq_len", [32, 128])
def test_a_row_scores_as_many_values_as_keys_repeat(seq_len):
    data = make_task("CR", seq_len=seq_len, train_rows=1, test_rows=2560)
    n, K = seq_len // 2 - 1, 8
    expected = n - K * (1 - (1 - 1 / K) ** n) + 1
    scored = (data.test_y != IGNORED).sum(1)
    assert abs(scored.mean() - expected) < 5 * scored.std() / math.sqrt(len(scored)) + 1e-3


def test_some_pairs_are_noise_and_one_never_is():
    data = make_task("NR", seq_len=4, frac_noise=0.99, train_rows=512, test_rows=1)
    assert (data.train_x[:, :2] < 16).all()  # the only pair before the last
    data = make_task("NR", frac_noise=0.8, train_rows=1024, test_rows=256)
    for x, y in data.splits().values():
        tokens = whole(x, y)[:, :-2].reshape(len(x), -1, 2)
        noisy = tokens[..., 0] >= 16
        assert abs(noisy.mean() - 0.8 * (1 - 1 / 63)) < 0.02
    assert (noisy == (tokens[..., 1] >= 16)).all()
    assert (data.test_y[:, :-1:2][noisy] == IGNORED).all()


def test_noise_is_two_tokens_drawn_apart_each_as_likely():
    data = make_task("NR", noise_vocab=2, frac_noise=0.8, train_rows=2048, test_rows=1)
    pairs = whole(data.train_x, data.train_y).reshape(-1, 2)
    task_rows = pairs[pairs[:, 0] >= 30] - 30
    counts = np.bincount(2 * task_rows[:, 0] + task_rows[:, 1], minlength=4)
    assert abs(counts / counts.sum() - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / counts.sum())


@pytest.mark.parametrize("task", ["CR", "NR"])
def test_the_last_query_is_any_key_of_the_row_however_often_it_was_shown(task):
    data = make_task(task, seq_len=32, train_rows=4096, test_rows=1)
    K, places, times = 8, [], []
    for *shown, asked, _ in whole(data.train_x, data.train_y):
        counts = np.bincount([key for key in shown[::2] if key < K], minlength=K)
        keys = np.flatnonzero(counts)
        places.append((keys.tolist().index(asked) + 0.5) / len(keys) - 0.5)
        times.append(counts[asked] - counts.sum() / len(keys))
    for centred in (np.array(places), np.array(times)):
        assert abs(centred.mean()) < 5 * centred.std() / math.sqrt(len(centred))


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("CR", {"seq_len": 31}, "an even number, at least 4"),
        ("CR", {"seq_len": 2}, "an even number, at least 4"),
        ("CR", {"vocab": 1}, "a key and a value: at least 2"),
        ("CR", {"vocab": 2, "multi_query": False}, "at least 3"),
        ("NR", {"vocab": 17}, "beside 16 for noise and the copy marker: at least 18"),
        ("NR", {"noise_vocab": 0}, "noise_vocab at least 1, or frac_noise 0"),
        ("NR", {"frac_noise": 1}, "below 1"),
        ("CR", {"frac_noise": 0.2}, "no option 'frac_noise'"),
        ("CR", {"wocab": 16}, "did you mean 'vocab'?"),
    ],
)
def test_a_setting_that_cannot_be_is_answered_with_its_rule(task, settings, message):
    with pytest.raises(ConfigError) as refusal:
        make_task(task, **settings)
    assert message in str(refusal.value)
