"""Whatever is tried in a child, its parent hears of it, and nothing outlives the parent."""

import itertools

import pytest

from mlxhog.arena import process
from mlxhog.arena.child import START_S, Child, Failed
from tests.doctor import planted


@pytest.fixture
def child():
    with Child() as started:
        yield started


@pytest.mark.slow
def test_a_child_says_nothing_on_the_streams_of_its_parent(child, capfd):
    assert child.call(START_S, planted.talk) == child.pid
    assert capfd.readouterr() == ("", "")


def test_an_error_is_told_and_what_is_kept_is_there_the_next_time(child):
    assert [child.call(START_S, planted.count_up) for _ in range(2)] == [1, 2]
    with pytest.raises(Failed, match="ValueError: this cannot work"):
        child.call(START_S, planted.fail)
    with pytest.raises(Failed, match="^the memory is used up: .* available"):
        child.call(START_S, planted.lack_memory)
    assert child.call(START_S, planted.count_up) == 3


def test_a_death_is_told_with_its_signal_and_its_last_words(child):
    with pytest.raises(Failed, match="SIGABRT.*the GPU is gone"):
        child.call(START_S, planted.crash)
    with pytest.raises(Failed, match="SIGABRT"):
        child.call(START_S, planted.count_up)


def test_a_death_for_lack_of_memory_is_told_as_one(child):
    with pytest.raises(Failed, match=r"SIGABRT\): what\(\):  std::bad_alloc"):
        child.call(START_S, planted.lack_memory_in_native_code)


def test_a_function_that_never_returns_is_given_up(child):
    child.call(START_S, planted.count_up)
    with pytest.raises(Failed, match="no answer within 0 s"):
        child.call(0.2, planted.hang)


def test_a_pause_of_the_whole_group_is_no_silence_of_a_child(child, monkeypatch):
    """Every look at its pipe is an hour after the one before, as by Ctrl-Z."""
    hours = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(process, "monotonic_ns", lambda: next(hours) * 3600 * 10**9)
        assert child.call(START_S, planted.count_up) == 1
