"""Rounds between machines against closed forms: what they take, and what they send."""

import pytest

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator import simulate
from mlxhog.theory.simulator.links import ClusterRounds, Link, sent_bytes
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker

SLOW = Link.parse("100Mbit:50ms")
FAST = Link(1e12)


def cluster(link=SLOW, machines=2, **more):
    return ClusterRounds(machines=machines, link=link, n_params=1e6, **more)


def workers_of(*steps_s):
    return [Worker(name="w", compute=times_of("constant", step_s)) for step_s in steps_s]


# -- links -----------------------------------------------------------------------------------------


def test_a_ring_all_reduce_takes_the_time_of_its_stages():
    assert SLOW.transfer_s(4e6) == pytest.approx(0.05 + 0.32)
    for machines in (2, 3, 8):
        stages = 2 * (machines - 1)
        expected = stages * (0.05 + 4e6 / machines * 8 / 100e6)
        assert SLOW.all_reduce_s(4e6, machines) == pytest.approx(expected)
        assert sent_bytes(4e6, machines) == pytest.approx(stages * 4e6 / machines)
    assert SLOW.round_s(4e6, 1) == 0


def test_rounds_by_the_advised_time_use_a_tenth_of_the_link():
    every_s = SLOW.round_every_s(4e6, 2)
    assert SLOW.round_s(4e6, 2) <= 0.1 * every_s < SLOW.round_s(4e6, 2) + 0.1
    assert FAST.round_every_s(4, 2) == 1


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("100Mbit:50ms", Link(12.5e6, 0.05)),
        ("1gbit/s", Link(125e6)),
        ("0.1", Link(12.5e6)),
        ("2.5Gbit:1s", Link(312.5e6, 1.0)),
    ],
)
def test_a_link_is_read_and_spelt(text, link):
    read = Link.parse(text)
    assert (read.bytes_per_s, read.latency_s) == pytest.approx((link.bytes_per_s, link.latency_s))
    again = Link.parse(str(read))
    assert (again.bytes_per_s, again.latency_s) == pytest.approx((read.bytes_per_s, read.latency_s))


@pytest.mark.parametrize(
    "text", ["", "fast", "0Mbit", "-1", "inf", "nan", "1Gbit:soon", "1Gbit:-1s"]
)
def test_other_links_are_refused_with_the_form(text):
    with pytest.raises(ConfigError, match="wanted"):
        Link.parse(text)


# -- rounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [FAST, SLOW, Link(1e5, 1.0)])
def test_workers_never_wait_for_a_link(link):
    workers = workers_of(0.25, 0.5, 0.25, 0.5)
    assert simulate(workers, cluster(link)).gradients_per_s == pytest.approx(12, rel=0.01)


def test_rounds_begin_by_the_clock_and_their_bytes_are_counted():
    use = cluster(round_every_s=10.0).use(105.0)
    assert use["rounds"] == 10
    assert use["bytes_per_s"] == pytest.approx(10 * 4e6 / 105)  # of each of two machines
    assert use["share"] == pytest.approx(10 * SLOW.round_s(4e6, 2) / 105)
    half = cluster(round_every_s=10.0, float_bytes=2).use(105.0)
    assert half["bytes_per_s"] == pytest.approx(use["bytes_per_s"] / 2)


def test_rounds_that_take_longer_than_their_interval_follow_each_other():
    link = Link(1e6)  # a round of 4 MB takes 4 s
    assert cluster(link, round_every_s=1.0).use(20.0)["rounds"] == 4
    assert cluster(link, round_every_s=1.0).use(20.0)["share"] == pytest.approx(19 / 20)


def test_wrong_clusters_are_refused():
    with pytest.raises(ConfigError, match="2 machines with 3 workers"):
        simulate(workers_of(1, 1, 1), cluster())
