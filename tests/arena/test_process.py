"""A watcher's clock."""

from mlxhog.arena import process
from mlxhog.arena.process import WatchedTime


def test_only_time_in_which_somebody_looked_counts(monkeypatch):
    now = [5_000_000_000]
    monkeypatch.setattr(process, "monotonic_ns", lambda: now[0])
    watched = WatchedTime()
    for _ in range(8):
        now[0] += 250_000_000
        seconds = watched.look()
    assert seconds == 2.0
    now[0] += 3600 * 10**9  # the group was stopped, the watcher with it
    assert watched.look() == 2.0 + WatchedTime.LONGEST_S
    assert watched.look() == 2.0 + WatchedTime.LONGEST_S
