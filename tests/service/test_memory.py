"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELD = """
from pathlib import Path
import numpy as np
from augserve.service.memory import give_back_freed_memory

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
