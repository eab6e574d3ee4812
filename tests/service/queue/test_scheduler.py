"""Who shares a run and what comes of it, with graphs that are not there and a worker that is held busy."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from augserve.errors import DeadlineError, QueueFullError
from augserve.service.isolation import cut, group_rows
from augserve.service.queue.deadlines import Deadline
from augserve.service.queue.scheduler import Ran, RunReport
from augserve.statistics import Statistics
from tests.service.held import LONG, FakeForm, Held, act, answers, piece_of


def logits(ran: Ran | BaseException) -> list[list[float]]:
    assert isinstance(ran, Ran), ran
    return ran.logits.tolist()


def test_requests_of_several_callers_share_a_run_and_get_their_own_answers() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        first, second, third = await held.behind(
            lambda: [
                held.ask(form, piece_of(1, 2), caller="a"),
                held.ask(form, piece_of(3, weight=0.5), caller="b"),
                held.ask(form, piece_of(4, 5, 6, weight=None), caller="a"),
            ]
        )
        assert logits(first) == answers(1, 2)
        assert logits(second) == answers(3, weight=0.5)
        assert logits(third) == answers(4, 5, 6, weight=1)

    held = act(body)
    assert form.runs == [[1, 2, 3, 4, 5, 6]]
    report = held.reports[-1]
    assert report._replace(seconds=0) == RunReport("fake", 3, 6, [2, 1], 0, False)
    assert report.seconds > 0


def test_a_run_holds_no_more_rows_than_max_batch_size() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        spans = ((0, 3), (3, 5), (5, 6), (6, 10), (10, 11))
        pieces = [piece_of(*range(*span)) for span in spans]
        for ran in await held.behind(lambda: [held.ask(form, piece) for piece in pieces]):
            assert isinstance(ran, Ran)

    act(body, max_batch_size=4)
    assert [len(run) for run in form.runs] == [3, 3, 4, 1]
    assert [row for run in form.runs for row in run] == list(range(11))


def test_a_caller_with_many_requests_does_not_delay_another() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        await held.behind(
            lambda: [
                *(held.ask(form, piece_of(k), caller="many") for k in range(8)),
                held.ask(form, piece_of(100), caller="one"),
            ]
        )

    act(body, max_batch_size=2)
    assert form.runs == [[0, 100], [1, 2], [3, 4], [5, 6], [7]]


def test_only_the_request_that_fails_fails() -> None:
    def fails(rows: list[float]) -> None:
        if 13 in rows:
            raise RuntimeError("this row breaks the model")

    form = FakeForm(on_run=fails)

    async def body(held: Held) -> None:
        good, bad, fine = await held.behind(
            lambda: [held.ask(form, piece_of(1, 2)), held.ask(form, piece_of(13)), held.ask(form, piece_of(3))]
        )
        assert logits(good) == answers(1, 2)
        assert logits(fine) == answers(3)
        assert isinstance(bad, RuntimeError)
        assert "this row breaks" in str(bad)
        assert logits(await held.ask(form, piece_of(4))) == answers(4)  # and nothing hangs after it

    held = act(body)
    assert form.runs == [[1, 2, 13, 3], [1, 2], [13], [3], [4]]
    assert [(report.requests, report.failed) for report in held.reports if report.model == "fake"] == [
        (3, True),
        (1, False),
    ]


def test_what_waits_past_its_deadline_never_runs() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        with held.busy() as release:
            await asyncio.sleep(0)
            late = held.ask(form, piece_of(1), piece_of(2), seconds=0)
            timely = held.ask(form, piece_of(3))
            with pytest.raises(DeadlineError, match="within 0 s; by then its run had not begun; try again"):
                await late
            assert held.scheduler.waiting == 1
            release()
            assert logits(await timely) == answers(3)

    act(body)
    assert form.runs == [[3]]


def test_a_run_that_has_begun_outlives_its_deadline() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        passed = asyncio.Event()
        loop = asyncio.get_running_loop()
        gate = threading.Event()
        form.on_run = lambda rows: gate.wait(LONG) and None
        task = held.ask(form, piece_of(1), seconds=0)
        loop.call_later(0, passed.set)
        await passed.wait()
        await asyncio.sleep(0)
        gate.set()
        assert logits(await task) == answers(1)

    act(body)


@pytest.mark.parametrize("running", [False, True])
def test_a_caller_who_leaves_takes_his_rows_along(running: bool) -> None:
    form = FakeForm()
    gate, begun = threading.Event(), threading.Event()

    def hold(rows: list[float]) -> None:
        begun.set()
        assert gate.wait(LONG)

    async def body(held: Held) -> None:
        with held.busy() as release:
            await asyncio.sleep(0)
            leaving = held.ask(form, piece_of(1), piece_of(2, 3, 4))
            staying = held.ask(form, piece_of(5), caller="b")
            await asyncio.sleep(0)
            if running:  # its first piece has begun, together with the other request
                form.on_run = hold
                release()
                await asyncio.to_thread(begun.wait, LONG)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert held.scheduler.waiting == (0 if running else 1)
            gate.set()
            release()
            assert logits(await staying) == answers(5)

    act(body, max_batch_size=3)
    assert form.runs == ([[1, 5]] if running else [[5]])


def test_rows_of_different_shapes_and_of_different_models_never_share_a_run() -> None:
    form, other = FakeForm(), FakeForm("other")

    async def body(held: Held) -> None:
        small, large, again, strange = await held.behind(
            lambda: [
                held.ask(form, piece_of(1)),
                held.ask(form, piece_of(2, shape=(1, 2, 2))),
                held.ask(form, piece_of(3)),
                held.ask(other, piece_of(4)),
            ]
        )
        assert [logits(ran) for ran in (small, large, again, strange)] == [answers(k) for k in (1, 2, 3, 4)]

    act(body)
    assert form.runs == [[1, 3], [2]]
    assert other.runs == [[4]]


def test_a_file_without_groups_runs_each_piece_by_itself() -> None:
    form = FakeForm(merges=False)

    async def body(held: Held) -> None:
        first, second = await held.behind(
            lambda: [held.ask(form, piece_of(1, 2), piece_of(3)), held.ask(form, piece_of(4), caller="b")]
        )
        assert logits(first) == answers(1, 2) + answers(3)
        assert logits(second) == answers(4)

    act(body)
    assert sorted(form.runs) == [[1, 2], [3], [4]]


def test_a_split_request_comes_back_in_order_whichever_part_ends_first() -> None:
    second_ran = threading.Event()

    def wait_for_the_second(rows: list[float]) -> None:
        if 0 in rows:
            assert second_ran.wait(LONG)
        elif 4 in rows:
            second_ran.set()

    form = FakeForm(on_run=wait_for_the_second)
    rows = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    pieces = cut(rows, group_rows(10, Statistics("tracked")), 4)

    async def body(held: Held) -> None:
        ran = await held.ask(form, *pieces)
        assert ran.logits[:, 0].tolist() == list(range(10))

    held = act(body, max_batch_size=4, workers=2)
    assert sorted(form.runs) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [report.groups for report in held.reports] == [[], [], []]  # tracked rows have no groups to tell of


def test_the_parts_of_a_split_request_leave_room_for_others() -> None:
    form = FakeForm()
    rows = np.arange(9, dtype=np.float32).reshape(9, 1, 1, 1)
    pieces = cut(rows, group_rows(9, Statistics("tracked")), 4)

    async def body(held: Held) -> None:
        large, small = await held.behind(
            lambda: [held.ask(form, *pieces, caller="a"), held.ask(form, piece_of(50, 51), caller="b")]
        )
        assert isinstance(large, Ran)
        assert large.logits[:, 0].tolist() == list(range(9))
        assert logits(small) == answers(50, 51)

    act(body, max_batch_size=4)
    assert form.runs == [[0, 1, 2, 3], [50, 51], [4, 5, 6, 7], [8]]


def test_workers_run_at_the_same_time() -> None:
    together = threading.Barrier(3)
    forms = [FakeForm(str(k), on_run=lambda rows: together.wait(LONG) and None) for k in range(3)]

    async def body(held: Held) -> None:
        for ran in await asyncio.gather(*(held.ask(form, piece_of(1)) for form in forms)):
            assert logits(ran) == answers(1)

    act(body, workers=3)


def test_an_idle_server_waits_for_nobody() -> None:
    """The deadline of 0 s passes before any window could: the run has begun by then."""
    form = FakeForm()

    async def body(held: Held) -> None:
        for k in range(3):
            assert logits(await held.ask(form, piece_of(k), seconds=0)) == answers(k)

    act(body, batch_timeout_s=LONG)


def test_a_full_run_waits_for_nobody() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        with held.busy() as release:
            await asyncio.sleep(0)
            early = held.ask(form, piece_of(1, 2))
            await asyncio.sleep(0)
            release()
            while held.scheduler.waiting and not held.reports:
                await asyncio.to_thread(lambda: None)
            assert held.scheduler.waiting == 1  # the worker is free, the window open
            last = held.ask(form, piece_of(3, 4), seconds=0)
            assert logits(await last) == answers(3, 4)
            assert logits(await early) == answers(1, 2)

    act(body, batch_timeout_s=LONG, max_batch_size=4)
    assert form.runs == [[1, 2, 3, 4]]


def test_a_window_ends_by_itself() -> None:
    form = FakeForm()

    async def body(held: Held) -> None:
        (ran,) = await held.behind(lambda: [held.ask(form, piece_of(1))])
        assert logits(ran) == answers(1)
        assert isinstance(ran, Ran)
        assert ran.queue_s >= 0.01

    act(body, batch_timeout_s=0.01)


def test_the_window_of_one_model_does_not_stop_another() -> None:
    waits, full = FakeForm("waits"), FakeForm("full")

    async def body(held: Held) -> None:
        with held.busy() as release:
            await asyncio.sleep(0)
            patient = held.ask(waits, piece_of(1))
            await asyncio.sleep(0)
            release()
            while not held.reports:
                await asyncio.to_thread(lambda: None)
            try:
                ran = await held.ask(full, piece_of(2, 3), seconds=0)
            finally:
                patient.cancel()
            assert logits(ran) == answers(2, 3)

    act(body, batch_timeout_s=LONG, max_batch_size=2)


def test_places_are_bounded_and_given_back() -> None:
    async def body(held: Held) -> None:
        scheduler = held.scheduler
        for _ in range(3):
            scheduler.enter()
        with pytest.raises(QueueFullError, match="at most 2 waiting requests"):
            scheduler.enter()
        scheduler.leave()
        scheduler.enter()
        assert scheduler.taken == 3

    act(body, queue_limit=2)


def test_nothing_is_left_behind() -> None:
    """After requests that succeed, fail, leave and expire, the scheduler holds nothing of them."""

    def fails(rows: list[float]) -> None:
        if 13 in rows:
            raise RuntimeError("this row breaks the model")

    form = FakeForm(on_run=fails)

    async def body(held: Held) -> None:
        def begin() -> list[asyncio.Task[Ran]]:
            tasks = [held.ask(form, piece_of(1), piece_of(2)), held.ask(form, piece_of(13), piece_of(3))]
            tasks += [held.ask(form, piece_of(4), seconds=0), held.ask(form, piece_of(5), caller="leaves")]
            asyncio.get_running_loop().call_soon(tasks[-1].cancel)
            return tasks

        for _ in range(3):
            good, bad, late, gone = await held.behind(begin)
            assert logits(good) == answers(1) + answers(2)
            assert isinstance(bad, RuntimeError)
            assert isinstance(late, (DeadlineError, Ran))
            assert isinstance(gone, asyncio.CancelledError)
        scheduler = held.scheduler
        while scheduler.lanes.running:
            await asyncio.to_thread(lambda: None)
        assert (scheduler.waiting, scheduler.lanes._queues, scheduler.lanes._found_idle) == (0, {}, set())

    act(body, max_batch_size=1)


def test_a_codec_job_past_its_deadline_is_not_done() -> None:
    done = []

    async def body(held: Held) -> None:
        with pytest.raises(DeadlineError):
            await held.scheduler.work(lambda: done.append(1), Deadline(0))
        assert await held.scheduler.work(lambda: 7, Deadline(LONG)) == 7
        assert await held.scheduler.work(lambda: 8) == 8

    act(body)
    assert done == []
