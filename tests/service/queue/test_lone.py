"""A lone request whose run is short is run by the event loop, every other one by a thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from augserve.service.queue.scheduler import Ran
from tests.service.held import FakeForm, Held, act, answers, piece_of


def rows_of(ran: Ran) -> list[list[float]]:
    return ran.logits.tolist()


def test_a_lone_short_run_needs_no_thread_and_any_other_does() -> None:
    ran_by: list[str] = []
    form = FakeForm(on_run=lambda rows: ran_by.append(threading.current_thread().name.partition("-run")[0]))
    here = threading.current_thread().name

    async def accepted(held: Held, row: float) -> Ran:
        held.scheduler.enter()
        try:
            return await held.ask(form, piece_of(row))
        finally:
            held.scheduler.leave()

    async def body(held: Held) -> None:
        assert rows_of(await accepted(held, 1)) == answers(1)  # nobody knows yet how long it takes
        form.takes_s = 1e-4
        assert rows_of(await accepted(held, 2)) == answers(2)
        several = await asyncio.gather(*(accepted(held, row) for row in range(3, 6)))
        assert [rows_of(ran) for ran in several] == [answers(row) for row in range(3, 6)]
        form.takes_s = 0.1
        assert rows_of(await accepted(held, 6)) == answers(6)
        form.takes_s = 1e-4
        await held.behind(lambda: [held.ask(form, piece_of(7))])  # a run is in progress

    held = act(body)
    assert ran_by[:2] == ["augserve", here]
    assert set(ran_by[2:]) == {"augserve"}
    assert sorted(row for run in form.runs for row in run) == list(range(1, 8))
    assert held.scheduler.waiting == held.scheduler.lanes.running == 0


def test_a_lone_short_run_that_fails_leaves_the_server_working() -> None:
    def fails(rows: list[float]) -> None:
        if 13 in rows:
            raise RuntimeError("this row breaks the model")

    form = FakeForm(on_run=fails)
    form.takes_s = 1e-4

    async def body(held: Held) -> None:
        with pytest.raises(RuntimeError, match="breaks the model"):
            await held.ask(form, piece_of(13))
        assert rows_of(await held.ask(form, piece_of(1))) == answers(1)

    assert [report.failed for report in act(body).reports] == [True, False]
