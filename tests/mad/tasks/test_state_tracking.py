"""Groups are groups, and brackets reach every depth."""

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


def test_brackets_reach_every_depth_up_to_the_limit():
    data = make_task("Dyck", kinds=3, depth=5, train_rows=20, test_rows=4, test_length=200)
    depths = np.where(data.test_x < 3, 1, -1).cumsum(1)
    assert set(depths.ravel().tolist()) == set(range(6))
