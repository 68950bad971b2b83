"""The checker accepts golden and our rows of the benchmark, and names the one broken invariant."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.mad.tasks import IGNORED, Dataset, check, make_task
from mlxhog.mad.tasks.dataset import read
from tests.pairs import each_of

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def golden(name: str) -> Dataset:
    return read(GOLDEN / f"{name}.npz")


@each_of("name", FILES)
def test_every_golden_file_is_accepted(name):
    findings = check(golden(name))
    assert findings.ok, findings.failures


def test_every_invariant_is_applied_to_some_golden_file():
    applied = {rule for name in FILES for rule in check(golden(name)).checked}
    assert set(range(1, 19)) <= applied


def test_the_reference_leaves_some_final_queries_unanswerable_and_that_is_no_failure():
    findings = check(golden("ficr_v16_k3_v3_t64"))
    assert findings.ok
    assert [note.split(" of ")[0] for note in findings.notes] == ["train: 5.1%", "test: 5.5%"]


def test_in_our_own_rows_it_is_a_failure():
    data = golden("ficr_v16_k3_v3_t64")
    findings = check(replace(data, meta={**data.meta, "generator": "mlxhog 1"}))
    assert {failure.rule for failure in findings.failures} == {12}
    assert "was not shown before" in findings.failures[0].message


@pytest.mark.slow
@each_of("seed", [0, 1])
@each_of(
    ("task", "settings"),
    [
        ("CR", {"seq_len": 32}),
        ("CR", {"vocab": 17, "multi_query": False, "seq_len": 32}),
        ("CR", {"vocab": 4, "seq_len": 8}),
        ("CR", {"vocab": 3, "seq_len": 4}),
        ("NR", {"seq_len": 64}),
        ("NR", {"frac_noise": 0.8}),
        ("NR", {"seq_len": 4}),
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
    ],
)
def test_our_rows_are_accepted(task, settings, seed):
    data = make_task(
        task, seed=seed, train_rows=512, test_rows=200, val_rows=130, processes=1, **settings
    )
    findings = check(data)
    assert findings.ok, [str(failure) for failure in findings.failures]


@pytest.mark.slow
def test_rows_that_several_processes_drew_are_accepted():
    findings = check(make_task("SC", train_rows=700, test_rows=256, processes=2))
    assert findings.ok
    assert "duplicate rows" in findings.checked


@dataclass(frozen=True)
class Whole:
    """The rows of a split as whole sequences, so that inputs and targets change together."""

    data: Dataset
    split: str

    @property
    def x(self) -> np.ndarray:
        return self.data.splits()[self.split][0]

    @property
    def y(self) -> np.ndarray:
        return self.data.splits()[self.split][1]

    def put(self, row: int, at: int, token: int) -> None:
        """Replace a token of the whole sequence: the input, and the dense target before it."""
        if at < self.x.shape[1]:
            self.x[row, at] = token
        if at and self.y[row, at - 1] != IGNORED:
            self.y[row, at - 1] = token


def outside_of_the_vocabulary(w):
    w.put(5, 4, 16)


def marker_elsewhere(w):
    w.put(5, 4, 16)


def shorter(w):
    object.__setattr__(w.data, "train_x", w.x[:, 1:].copy())
    object.__setattr__(w.data, "train_y", w.data.train_y[:, 1:].copy())


def value_where_a_key_belongs(w):
    w.put(5, 4, 9)


def last_key_not_shown(w):
    shown = set(w.x[5, :-1:2])
    w.put(5, 30, next(key for key in range(8) if key not in shown))


def another_value_for_a_key(w):
    key, value = w.x[5, -1], w.y[5, -1]
    w.y[5, -1] = 8 + (value - 8 + 1) % 8
    assert key in w.x[5, :-1:2]


def one_map_for_all(w):
    values = 8 + np.arange(8)
    for row in range(len(w.x)):
        for at in range(0, w.x.shape[1] + 1, 2):
            w.put(row, at + 1, values[w.x[row, at]])


def target_that_is_not_the_next_token(w):
    w.y[5, 7] = (w.y[5, 7] + 1) % 16


def ignored_in_training(w):
    w.y[5, 7] = IGNORED


def seen_value_not_scored(w):
    at = np.flatnonzero(w.y[5] != IGNORED)[0]
    assert at < w.y.shape[1] - 1
    w.y[5, at] = IGNORED


def new_value_scored(w):
    w.y[5, 0] = w.x[5, 1]


def wrong_value_at_a_key(w):
    at = np.flatnonzero(w.y[5] != IGNORED)[0]
    w.y[5, at] = 8 + (w.y[5, at] - 8 + 1) % 8


def targets_beside_their_keys(w):
    w.y[:, 1:] = w.y[:, :-1].copy()
    w.y[:, 0] = IGNORED


def fuzzy_outside(w):
    w.x[5, 0] = 16


def padding_inside(w):
    w.put(5, 40, 15)


def no_padding(w):
    row, pads = 5, int(np.argmax(w.x[5] != 15))
    for at in range(pads):
        w.put(row, at, w.x[row, pads])


def token_twice_in_a_motif(w):
    x = w.x
    for row in range(len(x)):
        for at in range(60):
            if x[row, at] < 7 and x[row, at + 1] < 7:
                w.put(row, at + 1, x[row, at])
                return


def shorter_key_in_test(w):
    """The first key loses its first token, everything before it moves up by one."""
    pads = int(np.argmax(w.x[5] != 15))
    w.x[5, 1 : pads + 1] = w.x[5, :pads].copy()


def two_values_of_a_fuzzy_key(w):
    # The final value's last token: the key of this row was shown before.
    motif = w.x[5, -3:].tolist() + [w.y[5, -1]]
    w.y[5, -1] = next(value for value in range(7, 15) if value not in motif)


def fuzzy_target_not_dense(w):
    w.y[5, 20] = (w.y[5, 20] + 1) % 15


def fuzzy_value_not_scored(w):
    at = np.flatnonzero(w.y[5] != IGNORED)[0]
    w.y[5, at] = IGNORED


def fuzzy_key_scored(w):
    at = np.flatnonzero((w.x[5, 1:] < 7) & (w.y[5, :-1] == IGNORED))[0]
    w.y[5, at] = w.x[5, at + 1]


def no_marker(w):
    w.x[5, 64 - 8 - 1] = 3


def content_after_the_marker(w):
    w.x[5, -1] = 3


def one_content_token_more(w):
    w.x[5, np.flatnonzero(w.x[5] == 14)[0]] = 3


def marker_in_the_head(w):
    w.x[5, np.flatnonzero(w.x[5] == 14)[0]] = 15


def blank_at_the_end_of_the_head(w):
    at = 64 - 8 - 2
    first_blank = np.flatnonzero(w.x[5] == 14)[0]
    w.x[5, first_blank], w.x[5, at] = w.x[5, at], 14


def copied_in_another_order(w):
    a, b = np.flatnonzero(w.y[5, -8:] != w.y[5, -1])[0] + 56, 63
    w.y[5, [a, b]] = w.y[5, [b, a]]


def target_in_the_head(w):
    w.y[5, 3] = w.x[5, 3]


def target_other_than_the_input(w):
    w.y[5, 3] = (w.y[5, 3] + 1) % 15


def last_token_not_scored(w):
    w.y[5, -1] = IGNORED


def compression_token_inside(w):
    w.x[5, 3] = w.y[5, 3] = 15


def key_out_of_range(w):
    w.x[5, 4] = 127


def no_insert_marker(w):
    w.x[5, 5] = 200


def other_value(w):
    w.y[5, 5] = 127 + (w.y[5, 5] - 126) % 127


def value_at_the_key(w):
    w.y[5, 4] = w.y[5, 5]


def key_missing_in_the_map(w):
    w.data.kv_keys[3] = w.data.kv_keys[4]


def two_keys_of_one_value(w):
    old, new = w.data.kv_values[3], w.data.kv_values[4]
    w.data.kv_values[3] = new
    for _, y in w.data.splits().values():
        y[y == old] = new


CASES: list[tuple[int, str, str, Callable[[Whole], None]]] = [
    (1, "icr_v16_t32", "train", outside_of_the_vocabulary),
    (1, "icr_v16_t32", "test", outside_of_the_vocabulary),
    (1, "icr_single_v17_t32", "train", marker_elsewhere),
    (2, "icr_v16_t32", "train", shorter),
    (3, "icr_v16_t32", "train", value_where_a_key_belongs),
    (3, "icr_v16_t32", "test", last_key_not_shown),
    (3, "nicr_v32_n16_t64_f02", "train", lambda w: w.put(5, 4, 20 if w.x[5, 4] < 16 else 3)),
    (4, "icr_v16_t32", "train", another_value_for_a_key),
    (4, "icr_v16_t32", "test", another_value_for_a_key),
    (4, "icr_v16_t32", "train", one_map_for_all),
    (5, "icr_v16_t32", "train", target_that_is_not_the_next_token),
    (5, "nicr_v32_n16_t64_f02", "train", ignored_in_training),
    (6, "icr_v16_t32", "test", seen_value_not_scored),
    (6, "icr_v16_t32", "test", new_value_scored),
    (6, "icr_single_v17_t32", "test", new_value_scored),
    (7, "icr_v16_t32", "test", wrong_value_at_a_key),
    (7, "icr_v16_t32", "test", targets_beside_their_keys),
    (8, "ficr_v16_k3_v3_t64", "train", fuzzy_outside),
    (8, "ficr_v16_k3_v3_t64", "train", shorter),
    (9, "ficr_v16_k3_v3_t64", "train", padding_inside),
    (9, "ficr_v16_k3_v3_t64", "test", no_padding),
    (10, "ficr_v16_k3_v3_t64", "train", token_twice_in_a_motif),
    (10, "ficr_v16_k3_v3_t64", "test", shorter_key_in_test),
    (11, "ficr_v16_k3_v3_t64", "train", two_values_of_a_fuzzy_key),
    (11, "ficr_v16_k3_v3_t64", "train", fuzzy_target_not_dense),
    (12, "ficr_v16_k3_v3_t64", "test", fuzzy_value_not_scored),
    (12, "ficr_v16_k3_v3_t64", "test", fuzzy_key_scored),
    (13, "sc_v16_t64_c8", "train", no_marker),
    (13, "sc_v16_t64_c8", "test", content_after_the_marker),
    (14, "sc_v16_t64_c8", "train", one_content_token_more),
    (14, "sc_v16_t64_c8", "train", marker_in_the_head),
    (14, "sc_v16_t64_c8", "test", blank_at_the_end_of_the_head),
    (15, "sc_v16_t64_c8", "train", copied_in_another_order),
    (15, "sc_v16_t64_c8", "test", target_in_the_head),
    (16, "comp_v16_t32_baseline", "train", target_other_than_the_input),
    (16, "comp_v16_t32_baseline", "test", last_token_not_scored),
    (16, "comp_v16_t32_baseline", "test", compression_token_inside),
    (17, "mem_v256_t32_baseline", "train", key_out_of_range),
    (17, "mem_v256_t32_baseline", "test", no_insert_marker),
    (18, "mem_v256_t32_baseline", "train", other_value),
    (18, "mem_v256_t32_baseline", "test", value_at_the_key),
    (18, "mem_v256_t32_baseline", "train", key_missing_in_the_map),
    (18, "mem_v256_t32_baseline", "test", two_keys_of_one_value),
]


@each_of(
    ("rule", "name", "split", "mutate"),
    [pytest.param(*case, id=f"{case[0]}-{case[3].__name__}-{case[2]}") for case in CASES],
)
def test_a_spoilt_row_breaks_the_invariant_it_should_and_no_other(rule, name, split, mutate):
    data = golden(name)
    mutate(Whole(data, split))
    failures = check(data).failures
    assert {failure.rule for failure in failures} == {rule}, [str(one) for one in failures]
    assert failures[0].row in (None, *range(len(data.train_x)))


def test_every_invariant_is_broken_by_some_case():
    assert {case[0] for case in CASES} == set(range(1, 19))


@each_of(
    ("rule", "name", "spoil"),
    [
        ("uniform keys", "mem_v256_t32_baseline", lambda d: d.train_x.__setitem__(
            (slice(None), slice(None, None, 2)), d.kv_keys[0])),
        ("uniform tokens", "comp_v16_t32_baseline", lambda d: [
            a.__setitem__(a == 3, 4) for a in (d.train_x, d.train_y)]),
        ("leak", "icr_v16_t128_baseline", lambda d: (
            d.train_x.__setitem__(7, d.test_x[3]),
            d.train_y.__setitem__((7, slice(0, -1)), d.test_x[3, 1:]),
            d.train_y.__setitem__((7, -1), d.test_y[3, -1]))),
        ("duplicate rows", "sc_v16_t64_c8", lambda d: [
            a.__setitem__(7, a[8]) for a in (d.train_x, d.train_y)]),
    ],
)  # fmt: skip
def test_rows_that_are_not_random_are_noticed(rule, name, spoil):
    data = golden(name)
    spoil(data)
    if rule == "uniform keys":
        data.train_y[:, 1::2] = data.kv_values[0]
    assert rule in {failure.rule for failure in check(data).failures}


def test_more_noise_than_was_asked_for_is_noticed():
    data = make_task("NR", train_rows=512, test_rows=128, frac_noise=0.4)
    findings = check(replace(data, meta={**data.meta, "frac_noise": 0.3}))
    assert {failure.rule for failure in findings.failures} == {"noise share"}


def test_blanks_that_gather_at_the_end_are_noticed():
    data = make_task("SC", seq_len=64, tokens_to_copy=8, train_rows=256, test_rows=8)
    data.train_x[:, :55] = 14
    data.train_x[:, 0:7] = data.train_y[:, 56:63]
    data.train_x[:, 54] = data.train_y[:, 63]
    failures = {failure.rule for failure in check(data).failures}
    assert failures == {"variance of blank gaps", "blanks before the last content token"}
