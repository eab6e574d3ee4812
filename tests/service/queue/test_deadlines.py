"""One timer for all deadlines: what waits too long is ended, in any order, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from augserve.errors import DeadlineError
from augserve.service.queue.deadlines import Deadline, Deadlines


def test_each_ends_at_its_time_whatever_was_armed_before() -> None:
    ended: list[str] = []

    async def go() -> None:
        deadlines = Deadlines()
        deadlines.watch(Deadline(60), lambda: ended.append("late"))
        for name, seconds in (("second", 0.02), ("first", 0.01), ("now", 0)):
            deadlines.watch(Deadline(seconds), lambda name=name: ended.append(name))
        forgotten = deadlines.watch(Deadline(0), lambda: ended.append("forgotten"))
        deadlines.forget(forgotten)
        deadlines.forget(forgotten)
        await asyncio.sleep(0.1)
        assert ended == ["now", "first", "second"]
        deadlines.close()

    asyncio.run(go())


def test_no_timer_is_left_behind() -> None:
    async def go() -> None:
        deadlines = Deadlines()
        deadlines.watch(Deadline(60), lambda: None)
        deadlines.close()
        deadlines.close()

    asyncio.run(go())


def test_a_deadline_that_has_passed_says_so() -> None:
    Deadline(60).check()
    assert Deadline(0).remaining() == 0
    with pytest.raises(DeadlineError, match="within 0 s; by then its run had not begun"):
        Deadline(0).check()
