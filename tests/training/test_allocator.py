"""Keeping freed memory: a buffer that is freed and asked for again costs no page faults."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median

import pytest

PROGRAM = """
import ctypes, json, resource, torch
from augserve.training.allocator import keep_freed_memory
def step(): return len([torch.ones(4_000_000) for _ in range(8)])
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def ten_steps():
    for _ in range(3): step()
    return [faults() for _ in range(10)]
assert ctypes.CDLL(None).mallopt(-3, 131072)  # the threshold for handing back; glibc moves its own
ordinary = ten_steps()
assert keep_freed_memory()
print(json.dumps([ordinary, ten_steps()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_buffers_are_found_again() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    ordinary, kept = json.loads(result.stdout)
    # A step has eight buffers of 3,907 pages, or of 8 where pages are large. The median: now and then a step may
    # find its buffers elsewhere, which is the allocator's affair.
    assert median(kept) < 100
    assert 20 * median(kept) < median(ordinary)
