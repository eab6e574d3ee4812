"""Which run a free thread takes: alone with all cores, or side by side and of a size."""

from __future__ import annotations

from typing import Any, cast

from augserve.service.queue.fairness import Entry
from augserve.service.queue.queues import Lane, Lanes, Run
from tests.service.held import FakeForm


def lane_of(name: str = "fake", *, beside: bool = True, merges: bool = True) -> Lane:
    form = FakeForm(name, merges=merges)
    form.beside = cast("Any", object()) if beside else None
    return form, (1, 1, 1)


def entries(*sizes: int) -> list[Entry[int]]:
    return [Entry(size, "", 0.0, number) for number, size in enumerate(sizes)]


def taken(lanes: Lanes[int]) -> Run[int]:
    run = lanes.take()
    assert isinstance(run, Run)
    return run


def test_what_is_alone_takes_all_cores_and_the_others_wait_for_it() -> None:
    lanes, lane = Lanes[int](2, 64, 0.0), lane_of()
    lanes.add(lane, entries(3))
    first = taken(lanes)
    assert first.alone
    lanes.add(lane, entries(1, 1))
    assert lanes.take() is None
    lanes.end(first)
    assert not taken(lanes).alone
    assert not taken(lanes).alone
    assert lanes.take() is None
    assert len(lanes) == 0


def test_runs_side_by_side_share_what_waits() -> None:
    lanes, lane = Lanes[int](2, 64, 0.0), lane_of()
    lanes.add(lane, entries(*[1] * 9))
    first, second = taken(lanes), taken(lanes)
    assert (first.rows, second.rows) == (5, 4)
    assert not first.alone
    assert not second.alone


def test_a_request_to_another_model_keeps_one_from_taking_all_cores() -> None:
    lanes = Lanes[int](2, 64, 0.0)
    lanes.add(lane_of(), entries(1))
    lanes.add(lane_of("other"), entries(1))
    assert [taken(lanes).alone, taken(lanes).alone] == [False, False]


def test_a_run_beside_a_large_one_takes_no_more_than_its_share() -> None:
    lanes, lane = Lanes[int](2, 64, 0.0), lane_of()
    lanes.add(lane, entries(*[1] * 40))
    first = taken(lanes)
    lanes.add(lane, entries(*[1] * 20))
    second = taken(lanes)
    assert (first.rows, second.rows) == (20, 30)
    lanes.end(first)
    assert taken(lanes).rows == 10


def test_forms_without_a_second_session_run_as_they_come() -> None:
    lanes, lane = Lanes[int](2, 4, 0.0), lane_of(beside=False)
    lanes.add(lane, entries(1))
    lanes.add(lane, entries(2, 3))
    assert [taken(lanes).rows, taken(lanes).rows] == [3, 3]
    assert lanes.take() is None


def test_one_worker_always_has_all_cores() -> None:
    lanes, lane = Lanes[int](1, 64, 0.0), lane_of()
    lanes.add(lane, entries(1, 1, 1))
    run = taken(lanes)
    assert (run.rows, run.alone) == (3, True)


def test_a_file_without_groups_runs_one_piece_at_a_time() -> None:
    lanes, lane = Lanes[int](2, 64, 0.0), lane_of(merges=False)
    lanes.add(lane, entries(3, 3, 3))
    assert [taken(lanes).rows, taken(lanes).rows] == [3, 3]
    assert len(lanes) == 1


def test_what_is_taken_out_is_not_run() -> None:
    lanes, lane = Lanes[int](2, 64, 60.0), lane_of()
    waiting = entries(1, 2)
    lanes.add(lane, waiting)
    lanes.discard(lane, waiting)
    lanes.discard(lane, waiting)
    assert lanes.take() is None
    assert len(lanes) == 0
