"""Groups are groups, products and brackets follow their definitions, and a broken one is named."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from mlxhog.mad.tasks import check, make_task
from mlxhog.mad.tasks.state_tracking import ORDERS, product_table
from tests.pairs import each_of


@each_of("group", ORDERS)
def test_every_table_is_that_of_a_group_with_the_identity_at_0(group):
    table, n = product_table(group), ORDERS[group]
    np.testing.assert_array_equal(table[0], np.arange(n))
    np.testing.assert_array_equal(table[:, 0], np.arange(n))
    np.testing.assert_array_equal(np.sort(table, 0).T, np.sort(table, 1))  # every element once
    np.testing.assert_array_equal(np.sort(table, 1), np.tile(np.arange(n), (n, 1)))
    if n <= 60:
        np.testing.assert_array_equal(table[table], table[:, table])


@pytest.mark.parametrize(
    ("group", "commutes"),
    [("parity", True), ("Z60", True), ("S3", False), ("A5", False), ("S5", False)],
)
def test_only_cyclic_groups_commute(group, commutes):
    table = product_table(group)
    assert np.array_equal(table, table.T) == commutes


def test_a5_and_s5_are_not_solvable_and_s3_is():
    for group, solvable in (("S3", True), ("A5", False), ("S5", False)):
        table = product_table(group)
        inverse = table.argmin(1)
        members = np.arange(ORDERS[group])
        while True:
            left, right = np.meshgrid(members, members)
            products = table[table[inverse[left], inverse[right]], table[left, right]]
            derived = closed(table, np.unique(products))
            if len(derived) == len(members):
                break
            members = derived
        assert (len(members) == 1) == solvable


def closed(table, members):
    while len(larger := np.unique(table[np.ix_(members, members)])) > len(members):
        members = larger
    return members


def test_targets_are_products_of_permutations_from_left_to_right():
    data = make_task("ST", group="S5", train_rows=8, test_rows=4, test_length=100)
    elements = list(permutations(range(5)))
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        for row, targets in zip(x.tolist(), y.tolist(), strict=True):
            state = (0, 1, 2, 3, 4)
            for token, target in zip(row, targets, strict=True):
                state = tuple(elements[token][place] for place in state)
                assert elements[target] == state


def test_targets_of_dyck_close_the_last_open_bracket():
    data = make_task("Dyck", kinds=3, depth=5, train_rows=20, test_rows=4, test_length=200)
    depths = set()
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        for row, targets in zip(x.tolist(), y.tolist(), strict=True):
            stack = []
            for token, target in zip(row, targets, strict=True):
                if token < 3:
                    stack.append(token)
                else:
                    assert stack.pop() == token - 3
                depths.add(len(stack))
                assert target == (3 + stack[-1] if stack else 6)
    assert depths == set(range(6))


@each_of("seed", [0, 1])
@each_of(
    ("task", "settings"),
    [
        *(("ST", {"group": group, "test_length": 300}) for group in ORDERS),
        ("ST", {"group": "parity", "seq_len": 20, "test_length": 20}),
        ("Dyck", {"test_length": 300}),
        ("Dyck", {"kinds": 1, "depth": 1, "seq_len": 30, "test_length": 64}),
        ("Dyck", {"kinds": 9, "depth": 12, "test_length": 300}),
    ],
)
def test_our_rows_are_accepted(task, settings, seed):
    data = make_task(task, seed=seed, train_rows=512, test_rows=200, val_rows=130, **settings)
    findings = check(data)
    assert findings.ok, [str(failure) for failure in findings.failures]


def element_outside(x, y):
    x[5, 4] = 6


def wrong_product(x, y):
    y[5, 4] = (y[5, 4] + 1) % 6


def product_of_the_other_side(x, y):
    table = product_table("S3")
    for at in range(1, x.shape[1]):
        y[5, at] = table[x[5, at], y[5, at - 1]]


def closing_bracket_of_another_kind(x, y):
    at = np.flatnonzero(x[5] >= 4)[0]
    x[5, at] = 4 + (x[5, at] - 4 + 1) % 4


def too_deep(x, y):
    x[5, :5] = 0


def closed_before_it_opens(x, y):
    x[5, 0] = 4


def bracket_beneath_the_last(x, y):
    at = np.flatnonzero(y[5] < 8)[0]
    y[5, at] = 4 + (y[5, at] - 4 + 1) % 4


def end_while_a_bracket_is_open(x, y):
    y[5, np.flatnonzero(y[5] < 8)[0]] = 8


@each_of(
    ("rule", "task", "split", "spoil"),
    [
        (20, "ST", "train", element_outside),
        (20, "ST", "test", element_outside),
        (21, "ST", "train", wrong_product),
        (21, "ST", "test", product_of_the_other_side),
        (23, "Dyck", "train", closing_bracket_of_another_kind),
        (23, "Dyck", "train", too_deep),
        (23, "Dyck", "test", closed_before_it_opens),
        (24, "Dyck", "train", bracket_beneath_the_last),
        (24, "Dyck", "test", end_while_a_bracket_is_open),
    ],
)
def test_a_spoilt_row_breaks_the_invariant_it_should_and_no_other(rule, task, split, spoil):
    data = make_task(task, train_rows=64, test_rows=40, test_length=100)
    spoil(*data.splits()[split])
    (failure,) = check(data).failures
    assert (failure.rule, failure.split, failure.row) == (rule, split, 5)


@each_of(("task", "rule"), [("ST", 19), ("Dyck", 22)])
def test_rows_of_another_length_are_noticed(task, rule):
    data = make_task(task, train_rows=64, test_rows=40, test_length=100)
    shorter = replace(data, train_x=data.train_x[:, 1:], train_y=data.train_y[:, 1:])
    assert {failure.rule for failure in check(shorter).failures} == {rule}
