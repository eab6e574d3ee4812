"""Answers leave in one write, in order and whole; large ones at once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from augserve.service.http.transport import AT_ONCE, Gathering


class Recorded:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


def through(*actions: bytes | str) -> list[bytes | str]:
    """What a transport sees of writes, of a close, and of turns of the loop in between."""
    recorded = Recorded()

    async def go() -> None:
        gathering = Gathering(cast("asyncio.Transport", cast("Any", recorded)))
        for action in actions:
            if isinstance(action, bytes):
                gathering.write(action)
            elif action == "close":
                gathering.close()
            elif action == "lost":
                recorded.close()
            else:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gathering.is_closing() is ("closed" in recorded.done)

    asyncio.run(go())
    return recorded.done


LARGE = bytes(AT_ONCE)


@pytest.mark.parametrize(
    ("actions", "seen"),
    [
        ([b"head", b"body"], [b"headbody"]),
        ([b"head", "turn", b"body"], [b"head", b"body"]),
        ([b"head", b"body", "close"], [b"headbody", "closed"]),
        (["close"], ["closed"]),
        ([b"head", LARGE, b"more"], [b"head" + LARGE, b"more"]),
        ([LARGE, "turn", b"more", "close"], [LARGE, b"more", "closed"]),
        ([b"head", "lost", b"body"], ["closed"]),
    ],
)
def test_what_is_written_arrives_whole_and_in_order(actions: list[bytes | str], seen: list[bytes | str]) -> None:
    assert through(*actions) == seen
