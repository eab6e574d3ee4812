"""Freed memory goes back to the system."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from augserve.errors import ConfigurationError
from augserve.service import lifecycle, read_settings, server
from augserve.service.isolation import cut, group_rows
from augserve.service.model.graph import Form
from augserve.service.queue.deadlines import Deadline
from augserve.service.queue.scheduler import Scheduler
from augserve.statistics import Statistics
from tests.service.tiny import write_model

_HEAPS = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")  # what decides for a process how many heaps it has

HELD = """
from pathlib import Path
import numpy as np
from augserve.service.queue.memory import give_back_freed_memory

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) // 1024

arrays = [np.ones(50_000, np.uint8) for _ in range(4000)]  # 200 MB, each too small for pages of its own
kept = arrays[::40]
del arrays
before = resident()
done = give_back_freed_memory()
print(done, before - resident(), sum(int(array.sum()) for array in kept))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_what_lies_between_blocks_in_use_goes_back_and_those_stay() -> None:
    ran = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=120)
    done, given_back, kept = ran.stdout.split()
    if done == "False":
        pytest.skip("a C library without malloc_trim")
    assert int(given_back) > 100
    assert int(kept) == 100 * 50_000


OF_THREADS = """
import sys, threading
import numpy as np
from augserve.service.queue.memory import give_back_freed_memory, share_one_heap

def resident():
    fields = dict(line.split(":") for line in open("/proc/self/status").read().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) // 1024

done = share_one_heap() if sys.argv[1] == "one" else True
np.ones(25 << 20, np.uint8)  # freed, it has later blocks up to this size come from heaps, as in a server
before = resident()
step, over = threading.Barrier(5), threading.Event()

def work():
    blocks = [np.ones(100_000, np.uint8) for _ in range(300)]
    step.wait()
    step.wait()
    del blocks
    step.wait()
    over.wait()  # a thread that ends would leave its heap to the next

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
step.wait()
held = resident() - before
step.wait()
step.wait()
give_back_freed_memory()
print(done, held, resident() - before)
over.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such heaps")
def test_what_threads_had_goes_back_from_one_heap_and_not_from_many() -> None:
    def mebibytes(heaps: str, **environment: str) -> tuple[str, int, int]:
        """Whether it was done; what 4 threads held, and still hold after they freed it and it was given back."""
        ran = subprocess.run(
            [sys.executable, "-c", OF_THREADS, heaps],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env={name: value for name, value in os.environ.items() if name not in _HEAPS} | environment,
        )
        done, held, left = ran.stdout.split()
        return done, int(held), int(left)

    done, held, left = mebibytes("one")
    assert done == "True"
    assert held > 100
    assert left < 10
    assert mebibytes("many")[2] > 20  # what the setting is for
    assert mebibytes("one", MALLOC_ARENA_MAX="4")[0] == "False"  # the operator has decided otherwise


def test_a_server_shares_one_heap_before_it_opens_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def opened(settings: object) -> None:
        steps.append("opened")
        raise ConfigurationError("far enough")

    monkeypatch.setattr(server, "share_one_heap", lambda: steps.append("shared"))
    monkeypatch.setattr(server, "Service", opened)
    with pytest.raises(ConfigurationError, match="far enough"):
        server.serve(read_settings(model="none.onnx", port=0))
    assert steps == ["shared", "opened"]


class _Zeros:
    """A form of a model that answers 0."""

    merges, model, beside, fill = True, "zeros", None, None

    def seconds_of(self, rows: int) -> float:
        return 1.0

    def run(self, rows: np.ndarray, *_: object, alone: bool = True) -> np.ndarray:
        return np.zeros((len(rows), 2), np.float32)


def test_what_was_answered_is_free_without_the_garbage_collector() -> None:
    async def held() -> list[object]:
        scheduler, form = Scheduler(1, 4), _Zeros()
        rows = np.ones((3, 1, 2, 2), np.float32)
        pieces = cut(rows, group_rows(3, Statistics("batch"), 2, "own", 1), 8)
        await scheduler.run(cast("Form", form), pieces, "someone", Deadline(10))
        scheduler.close()
        left = [weakref.ref(form), weakref.ref(rows)]
        del form, rows, pieces
        for _ in range(100):  # the thread that ran lets go a little later
            if all(one() is None for one in left):
                break
            await asyncio.sleep(0.01)
        return [one() for one in left if one() is not None]

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(held()) == []
    finally:
        gc.enable()


def test_memory_goes_back_once_more_when_the_last_request_lets_go_of_what_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = []
    monkeypatch.setattr(lifecycle, "give_back_freed_memory", lambda: given_back.append(True))

    async def serve() -> None:
        service = lifecycle.Service(read_settings(model=tmp_path, threads=1, repository_poll_s=0.01))

        async def settled() -> int:
            """How often memory was given back, once that has been the same for many polls."""
            before = -1
            while before != len(given_back):
                before = len(given_back)
                await asyncio.sleep(0.3)
            return before

        await service.start()
        predictor = service.models.get("a")
        assert predictor is not None
        at_first = await settled()
        write_model(tmp_path / "new.part", classes=["new"] * 4)
        (tmp_path / "new.part").replace(tmp_path / "a.onnx")
        while service.models.get("a") is predictor:
            await asyncio.sleep(0.01)
        replaced = await settled()
        assert replaced > at_first
        del predictor
        assert await settled() > replaced
        await service.stop()

    write_model(tmp_path / "a.onnx")
    asyncio.run(serve())


def test_memory_goes_back_after_a_model_was_unloaded_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(lifecycle, "give_back_freed_memory", given_back.set)
    monkeypatch.setattr(lifecycle, "TIDY_S", 0.01)

    async def serve() -> None:
        service = lifecycle.Service(read_settings(model=tmp_path, threads=1, repository_poll_s=0))
        await service.start()
        assert await asyncio.to_thread(given_back.wait, 60)  # what loading took
        given_back.clear()
        service.models.unload("a")
        assert await asyncio.to_thread(given_back.wait, 60)
        await service.stop()

    write_model(tmp_path / "a.onnx")
    asyncio.run(serve())
