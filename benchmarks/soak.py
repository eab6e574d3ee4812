#!/usr/bin/env python3
"""A server under everything at once, for as long as asked: is a request lost, an answer wrong, memory held?

    python -m benchmarks.soak                               30 minutes on resnet20 (needs the train extra)
    python -m benchmarks.soak --minutes 6 a.onnx b.onnx     on two files that take rows of one shape, in turn

It starts `augserve serve FOLDER` on a free loopback port. From then on the file is replaced by the other one again
and again; there are aborted uploads, bodies that are malformed or too large, slow senders and slow readers; a user
of `augserve.client.AsyncClient` asks all the time. Beside all that it measures how many requests a second a closed
loop of callers gets answered, and offers 80% of them in an open loop. The server is ended by SIGTERM and started
again a few times in the first half: the second half is one life, whose memory is weighed. At the end come mutated
bodies (`soak_fuzz`), as many as --fuzz says.

Exit status 1 where a request was lost or answered 500, an answer was not that of its rows alone, a connection broke
without a restart, a stranger got what he should not, the server wrote a traceback or ended badly, or its memory
grew.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from augserve.bench.load import percentiles, poisson
from augserve.files import write_atomic
from benchmarks.soak_fuzz import fuzz
from benchmarks.soak_hostile import Strangers
from benchmarks.soak_server import Server, growths
from benchmarks.soak_traffic import Caller, Case, Tally, ask_as_a_user, make_cases

MODEL = "soaked"
MAX_BODY_BYTES = 2**20
ON_THEIR_WAY = 2000  # requests at a time; beyond, what is due is held back and counted
SHARE = 0.8  # of saturation
GROWS_KIB_PER_MIN = 256.0  # by which memory may grow, after twice the slope's standard error is taken off
WEIGHED_S = 60.0  # a life that is shorter after its warm-up says nothing


@dataclass(frozen=True)
class Plan:
    """How long, and how often what happens, in seconds.

    Args:
        seconds: of the load.
        saturate: of the closed loop before it, beside everything but restarts.
        reload_every: between two replacements of the file.
        restart_every: between two restarts, in the first half.
        pause: of each kind of stranger between two times.
        slowly: that a slow sender or reader takes.
        warm_up: at the start of a life, before its memory counts.
        fuzz: mutated bodies at the end.
    """

    seconds: float = 1800.0
    saturate: float = 30.0
    reload_every: float = 10.0
    restart_every: float = 90.0
    pause: float = 0.5
    slowly: float = 2.0
    warm_up: float = 60.0
    fuzz: int = 50_000


@dataclass(frozen=True)
class Result:
    """The table of a soak, and what must not have happened."""

    lines: list[str]
    violations: list[str]
    restarts: int
    changes: int
    statuses: dict[int, int]


async def soak(files: Sequence[Path], folder: Path, plan: Plan) -> Result:
    """Soak a server in a folder that is this function's own."""
    contents = [file.read_bytes() for file in files]
    served = folder / "models" / f"{MODEL}.onnx"
    served.parent.mkdir()
    write_atomic(served, contents[0])
    cases = make_cases(files, MODEL)
    poll_s = min(1.0, plan.reload_every / 4)
    server = Server(
        served.parent, folder / "server.log", {"repository_poll_s": poll_s, "max_body_bytes": MAX_BODY_BYTES}
    )
    tally, restarting = Tally(), asyncio.Event()
    caller = Caller(server.url, tally, restarting)
    strangers = Strangers(caller, cases, MAX_BODY_BYTES)
    try:
        await server.start()
        around = [
            asyncio.create_task(work)
            for work in (
                strangers.run(plan.pause, plan.slowly),
                ask_as_a_user(server.url, cases, tally),
                _reload(served, contents, plan.reload_every),
                _weigh(server),
            )
        ]
        saturation = await _saturate(Caller(server.url, Tally(), restarting), cases, plan.saturate)
        began = time.perf_counter()
        restarts = asyncio.create_task(_restart(server, caller, plan))
        offer = asyncio.create_task(_offer(caller, cases, SHARE * saturation, plan.seconds))
        await asyncio.wait({offer, *around}, return_when=asyncio.FIRST_COMPLETED)
        for task in around:
            if task.done():  # none of them ends by itself
                await task
        await asyncio.gather(offer, restarts)
        seconds = time.perf_counter() - began
        for task in around:
            task.cancel()
        await asyncio.gather(*around, return_exceptions=True)
        caller.close()
        fuzzed = await asyncio.to_thread(fuzz, server.url, MODEL, cases[0].rows.shape[1:], plan.fuzz)
        await server.stop()
    finally:
        server.kill()
    return _result(server, tally, strangers, plan, saturation, seconds, fuzzed)


async def _saturate(caller: Caller, cases: Sequence[Case], seconds: float) -> float:
    """Return how many requests a second 32 callers get answered, who each wait for the answer before the next."""
    start = time.perf_counter()

    async def one(number: int) -> None:
        while time.perf_counter() < start + seconds:
            number += 1
            await caller.ask(cases[number % len(cases)], time.perf_counter())

    await asyncio.gather(*(one(7 * k) for k in range(32)))
    caller.close()
    return len(caller.tally.latencies) / (time.perf_counter() - start)


async def _offer(caller: Caller, cases: Sequence[Case], rate: float, seconds: float) -> None:
    """Send requests at times of their own, and wait for what is on its way at the end."""
    start, flying = time.perf_counter(), set[asyncio.Task[None]]()
    for number, due in enumerate(poisson(rate, seconds, seed=0)):
        wait = start + due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif number % 64 == 0:
            await asyncio.sleep(0)  # late: the others must have their turn all the same
        if len(flying) >= ON_THEIR_WAY:
            caller.tally.held_back += 1
            await asyncio.sleep(0)
            continue
        task = asyncio.create_task(caller.ask(cases[number % len(cases)], start + due))
        flying.add(task)
        task.add_done_callback(flying.discard)
    await asyncio.gather(*flying)


async def _reload(served: Path, contents: Sequence[bytes], every: float) -> None:
    turn = 0
    while True:
        await asyncio.sleep(every)
        turn += 1
        await asyncio.to_thread(write_atomic, served, contents[turn % len(contents)])


async def _restart(server: Server, caller: Caller, plan: Plan) -> None:
    times = max(1, int(plan.seconds / 2 / plan.restart_every))
    for _ in range(times):
        await asyncio.sleep(min(plan.restart_every, plan.seconds / 3))
        caller.restart_began = time.perf_counter()
        caller.restarting.set()
        await server.stop()
        caller.close()
        await server.start()
        caller.close()
        await asyncio.sleep(1)  # what ended within the restart is heard of by then
        caller.restarting.clear()


async def _weigh(server: Server) -> None:
    while True:
        await asyncio.sleep(0.5)
        server.weigh()


def _result(
    server: Server,
    tally: Tally,
    strangers: Strangers,
    plan: Plan,
    saturation: float,
    seconds: float,
    fuzzed: dict[str, int],
) -> Result:
    p50, p99, top = (1e3 * value for value in percentiles(tally.latencies, (50, 99, 100)))
    lives = [one for one in growths(server.weights, plan.warm_up) if one.seconds >= WEIGHED_S]
    answered = len(tally.latencies)
    lines = [
        f"saturation     {saturation:.0f} requests/s of 1 to 8 rows, all who ask beside the server",
        f"offered        {SHARE * saturation:.0f} requests/s for {plan.seconds:.0f} s; held back {tally.held_back}",
        f"answered       {answered} with 200 ({answered / seconds:.0f}/s), each compared with its rows run alone",
        f"latency        p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {top:.0f} ms, restarts included",
        f"statuses       {_counts(tally.statuses)}",
        f"retried        {tally.retried} for want of an answer, {tally.statuses[503]} after 503",
        f"restarts       {server.life}; changes of the file seen in answers: {tally.changes}",
        *(f"stranger       {name} x{count}" for name, count in sorted(strangers.counts.items())),
        f"fuzzed         {_counts(fuzzed)}",
        *(
            f"memory         life {one.life}: {one.first_mib:.1f} to {one.last_mib:.1f} MiB in {one.seconds:.0f} s"
            f", slope {one.kib_per_min:+.0f} +- {one.error:.0f} KiB/min"
            for one in lives
        ),
    ]
    violations = [
        *(f"lost: {what} x{count}" for what, count in tally.lost.items()),
        *(f"wrong answer: {what} x{count}" for what, count in tally.wrong.items()),
        *(f"without a restart: {what} x{count}" for what, count in tally.strays.items()),
        *(f"stranger: {what} x{count}" for what, count in strangers.wrong.items()),
        *(f"fuzzed: {what} x{count}" for what, count in fuzzed.items() if not what.startswith(("2", "4"))),
        *server.bad_ends,
        *(
            f"memory of life {one.life} grew by {one.kib_per_min:.0f} KiB/min"
            for one in lives
            if one.life == server.life and one.kib_per_min - 2 * one.error > GROWS_KIB_PER_MIN
        ),
    ]
    last = [one for one in lives if one.life == server.life]
    if not any(one.kib_per_min + 2 * one.error <= GROWS_KIB_PER_MIN for one in last):
        lines.append("memory         UNDECIDED: the slope's error allows for growth; soak for longer")
    if "Traceback" in server.log():
        violations.append(f"the server wrote a traceback: {server.log()[-2000:]}")
    return Result(lines, violations, server.life, tally.changes, dict(tally.statuses))


def _counts(found: dict[int, int] | dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(found.items(), key=str)) or "none"


def export_two(folder: Path) -> list[Path]:
    """Export resnet20 twice, with different weights."""
    import torch

    from augserve.export import export_onnx
    from augserve.models import build_model

    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = build_model("resnet20", norm="aug")
        example = torch.randn(16, 3, 32, 32)
        network(example)
        paths.append(folder / f"resnet20-{seed}.onnx")
        export_onnx(network.eval(), paths[-1], example=example)
    return paths


def main() -> int:
    """Soak as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="two .onnx files [default: resnet20, exported twice]")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--restart-every", type=float, default=Plan.restart_every, help="seconds")
    parser.add_argument("--fuzz", type=int, default=Plan.fuzz, help="mutated bodies at the end")
    asked = parser.parse_args()
    if len(asked.files) not in (0, 2) or not asked.minutes > 0:
        parser.error("expected two files or none, and minutes above 0")
    folder = Path(tempfile.mkdtemp(prefix="augserve-soak-"))
    try:
        files = asked.files or export_two(folder)
        plan = Plan(60 * asked.minutes, restart_every=asked.restart_every, fuzz=asked.fuzz)
        result = uvloop.run(soak(files, folder, plan))
    finally:
        shutil.rmtree(folder)
    print("\n".join(result.lines))
    print("\n".join(f"WRONG          {one}" for one in result.violations) or "no violation seen")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
