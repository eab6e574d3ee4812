"""Who shares a run: the queue against a plain list of arrivals, and the moment to run on a clock of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augserve.service.queue.fairness import Entry, FairQueue, when_to_run

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)

arrivals = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 12)), max_size=40)
limits = st.integers(1, 16)


def queue_of(coming: list[tuple[str, int]]) -> tuple[FairQueue[int], list[Entry[int]]]:
    """A queue and its entries, numbered in the order of their arrival, one a second."""
    queue: FairQueue[int] = FairQueue()
    entries = [Entry(size, caller, float(k), k) for k, (caller, size) in enumerate(coming)]
    for entry in entries:
        queue.add(entry)
    return queue, entries


def drained(queue: FairQueue[int], limit: int) -> list[list[int]]:
    runs = []
    while len(queue):
        runs.append(queue.take(limit))
        assert runs[-1], "a queue that is not empty gave an empty run"
    return runs


@SETTINGS
@given(arrivals, limits)
def test_a_run_holds_no_more_rows_than_the_limit_unless_it_is_one_larger_entry(coming: list, limit: int) -> None:
    queue, entries = queue_of(coming)
    for run in drained(queue, limit):
        assert sum(entries[k].size for k in run) <= limit or len(run) == 1


@SETTINGS
@given(arrivals, limits)
def test_nothing_is_lost_or_doubled_and_the_rows_are_counted(coming: list, limit: int) -> None:
    queue, entries = queue_of(coming)
    waiting = {entry.item: entry for entry in entries}
    while waiting:
        assert len(queue) == len(waiting)
        assert queue.rows == sum(entry.size for entry in waiting.values())
        assert queue.oldest() == min(entry.arrived for entry in waiting.values())
        for k in queue.take(limit):
            del waiting[k]  # KeyError: taken twice
    assert (len(queue), queue.rows, queue.take(limit)) == (0, 0, [])


@SETTINGS
@given(arrivals, limits)
def test_the_entries_of_a_caller_run_in_the_order_they_came(coming: list, limit: int) -> None:
    queue, entries = queue_of(coming)
    order = [k for run in drained(queue, limit) for k in run]
    for caller in "abcd":
        mine = [k for k in order if entries[k].caller == caller]
        assert mine == sorted(mine)


@SETTINGS
@given(st.lists(st.sampled_from("abcd"), max_size=40), limits)
def test_callers_take_turns(callers: list[str], limit: int) -> None:
    """With entries of one row: between two of one caller, everyone else who still waits was served once."""
    queue, entries = queue_of([(caller, 1) for caller in callers])
    order = [entries[k].caller for run in drained(queue, limit) for k in run]
    waiting = Counter(callers)
    last: dict[str, int] = {}
    for turn, caller in enumerate(order):
        if caller in last:
            served = Counter(order[last[caller] + 1 : turn])
            assert all(served[other] == 1 for other in waiting if other != caller and waiting[other])
        last[caller] = turn
        waiting[caller] -= 1


@SETTINGS
@given(arrivals, st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 12)), max_size=9)), limits)
def test_no_caller_starves_while_others_keep_coming(before: list, coming: list, limit: int) -> None:
    """The first entry of a caller runs after one run for each caller before it at the latest, whatever comes."""
    queue, _ = queue_of(before)
    callers_before = len({caller for caller, _ in before})
    queue.add(Entry(limit, "large", 99.0, -1))  # fits into no run that holds anything else
    runs = 0
    ran: list[int] = []
    for more in [*coming, *[[("a", 1)]] * 5]:
        for caller, size in more:
            queue.add(Entry(size, caller, 100.0, 100))
        runs += 1
        ran = queue.take(limit)
        if -1 in ran:
            break
    assert ran == [-1]
    assert runs <= callers_before + 1


def test_an_entry_that_does_not_fit_keeps_its_turn() -> None:
    queue, _ = queue_of([("a", 3), ("b", 4), ("c", 1), ("a", 3), ("c", 1)])
    assert queue.take(4) == [0, 2]
    queue.add(Entry(1, "d", 9.0, 5))
    assert queue.take(4) == [1]
    assert queue.take(4) == [3, 4]
    assert queue.take(4) == [5]


def test_an_entry_larger_than_the_limit_runs_alone() -> None:
    queue, _ = queue_of([("a", 9), ("b", 1), ("a", 1)])
    assert [queue.take(4), queue.take(4)] == [[0], [1, 2]]
    queue, _ = queue_of([("b", 1), ("a", 9), ("c", 1)])
    assert [queue.take(4), queue.take(4)] == [[0, 2], [1]]


@SETTINGS
@given(arrivals.filter(bool), limits, st.data())
def test_what_is_discarded_never_runs_and_the_rest_does(coming: list, limit: int, data: st.DataObject) -> None:
    queue, entries = queue_of(coming)
    gone = data.draw(st.sets(st.sampled_from(range(len(entries)))))
    ran = queue.take(limit) if data.draw(st.booleans()) else []
    for k in gone:
        queue.discard(entries[k])
        queue.discard(entries[k])  # twice changes nothing
    left = {entry.item for entry in entries} - gone - set(ran)
    assert queue.rows == sum(entries[k].size for k in left)
    if left:
        assert queue.oldest() == min(entries[k].arrived for k in left)
    assert sorted(k for run in drained(queue, limit) for k in run) == sorted(left)


def test_only_the_very_entry_is_discarded() -> None:
    queue: FairQueue[str] = FairQueue()
    first, twin = Entry(2, "a", 0.0, "same"), Entry(2, "a", 0.0, "same")
    queue.add(first)
    queue.discard(twin)
    queue.discard(Entry(1, "stranger", 0.0, "same"))
    assert (len(queue), queue.rows) == (1, 2)


def test_the_oldest_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        FairQueue().oldest()


@SETTINGS
@given(
    rows=st.integers(1, 100),
    oldest=st.floats(0, 1e6),
    limit=st.integers(1, 64),
    window_s=st.floats(0, 60),
    found_idle=st.booleans(),
)
def test_a_run_waits_for_its_window_at_the_most(
    rows: int, oldest: float, limit: int, window_s: float, found_idle: bool
) -> None:
    due = when_to_run(rows, oldest, limit, window_s, found_idle)
    if found_idle or rows >= limit:
        assert due == oldest  # at once: that moment has passed
    else:
        assert due == oldest + window_s


def test_a_clock_shows_the_window() -> None:
    """Rows come every tenth of a second while another run is in progress: the first one opens the window."""
    queue: FairQueue[int] = FairQueue()
    started = []
    for tick in range(12):
        now = tick / 10
        queue.add(Entry(1, "a", now, tick))
        if when_to_run(queue.rows, queue.oldest(), 100, 0.5, found_idle=False) <= now:
            started.append((now, queue.take(100)))
    assert started == [(0.5, [0, 1, 2, 3, 4, 5]), (1.1, [6, 7, 8, 9, 10, 11])]
