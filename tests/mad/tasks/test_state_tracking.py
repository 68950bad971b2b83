"""Groups are groups, products and brackets follow their definitions, and long rows are drawn."""

from itertools import permutations

import numpy as np
import pytest

from mlxhog.mad.tasks import make_task
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
