"""The rule for tiles and splits, memory layouts, and that the kernels compile for a device that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from augserve.norms.kernels.triton import norm as triton_norm
from augserve.norms.kernels.triton.plan import MOST_SPLITS, PROGRAMS, Layout, arrange, plan

SHAPES = [
    (32, 64, 56, 56),
    (32, 2048, 7, 7),
    (256, 512, 14, 14),
    (8, 3, 1024, 1024),
    (2, 1, 5, 5),
    (512, 10),
    (7, 3, 9),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("grouped", [False, True], ids=["one", "groups"])
@pytest.mark.parametrize("size", [2, 4], ids=["half", "float"])
def test_tiles_are_powers_of_two_and_cover_a_set(
    shape: tuple[int, ...], last: bool, grouped: bool, size: int
) -> None:
    rows, channels = shape[:2]
    positions = int(torch.Size(shape[2:]).numel())
    if last and grouped:
        layout = Layout(rows, positions, channels, channels * positions, 1, channels)
    elif last:
        layout = Layout(1, rows * positions, channels, channels * rows * positions, 1, channels)
    else:
        layout = Layout(rows, positions, channels, channels * positions, positions, 1)
    sizes = plan(layout, grouped, size)
    for n in (sizes.BN, sizes.BL, sizes.BC, sizes.padded_splits, sizes.sample_rows):
        assert n == 1 << (n.bit_length() - 1)
    assert sizes.BN * sizes.BL * sizes.BC <= 4096
    assert sizes.BN * sizes.BL % sizes.sample_rows == 0
    assert sizes.blocks * sizes.BC >= channels
    assert 1 <= sizes.splits <= sizes.padded_splits <= MOST_SPLITS
    assert sizes.blocks * sizes.padded_splits <= max(2 * PROGRAMS, sizes.blocks)
    if sizes.resident:
        assert not grouped
        assert layout.rows <= sizes.BN
        assert layout.positions <= sizes.BL


def test_the_tile_of_a_group_does_not_depend_on_the_number_of_rows() -> None:
    for one, other in ((1, 1000), (7, 64)):
        layouts = [Layout(rows, 49, 512, 512 * 49, 49, 1) for rows in (one, other)]
        first, second = (plan(layout, True, 4) for layout in layouts)
        assert first._replace(splits=0) == second._replace(splits=0)


def test_memory_orders_are_taken_as_they_are() -> None:
    x = torch.randn(2, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    for tensor, expected in (
        (x, Layout(2, 20, 3, 60, 20, 1)),
        (last, Layout(1, 40, 3, 120, 1, 3)),
        (x[:, :, 0, 0].contiguous(), Layout(1, 2, 3, 6, 1, 3)),
        (x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2), Layout(1, 40, 3, 120, 1, 3)),
    ):
        arranged, layout = arrange(tensor, grouped=False)
        assert arranged.data_ptr() == tensor.data_ptr()
        assert layout == expected
    assert arrange(last, grouped=True)[1] == Layout(2, 20, 3, 60, 1, 3)
    assert arrange(x.transpose(2, 3), grouped=False)[0].is_contiguous()


def run(script: str, **environment: str) -> str:
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**variables, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


WITHOUT = """
import sys
sys.modules["triton"] = None
from augserve.norms.kernels.triton import backward, norm, passes, solve
assert not norm.available()
"""


def test_everything_imports_without_triton() -> None:
    run(WITHOUT)


# Signatures as a launch makes them: pointers and sizes that 16 divides, and None for what is not given.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from augserve.norms.kernels.triton import backward as back, passes, solve
from augserve.norms.kernels.triton.api import GENERAL

SIZES = ("positions", "channels", "row_stride", "channel_stride", "position_stride")
FLOATS = ("exponent", "eps", "rtol")

def build(kernel, none=(), dtype="*fp32", ones=("position_stride",), **constants):
    signature, values, aligned = {}, {}, {}
    for k, name in enumerate(kernel.arg_names):
        if name in constants or name in none or name in ones:
            signature[name] = "constexpr"
            values[k,] = constants.get(name, None if name in none else 1)
        elif name in FLOATS:
            signature[name] = "fp32"
        elif name in GENERAL or name in SIZES:
            signature[name] = "i32"
        else:
            kinds = {"order": "*i64", "offsets": "*i64", "x": dtype, "y": dtype, "dx": dtype, "dy": dtype}
            signature[name] = kinds.get(name, "*fp32")
        if name in SIZES or signature[name].startswith("*"):
            aligned[k,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, {k: v for k, v in aligned.items() if k not in values})
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    print(kernel.fn.__name__)

tile = dict(BN=2, BL=1024, BC=1)
last = dict(BN=1, BL=128, BC=16)
one = ("order", "offsets", "tracked_weight", "running_center", "running_spread", "exponents")
small = dict(FRESH=True, FIRST=True, SP=16)
work = ("memory", "partial", "seeds")
build(solve.solve_sets, one + work, KIND=0, PHI=1, RESIDENT=True, **small, **tile)
build(solve.solve_sets, work, "*bf16", ("channel_stride",), KIND=0, PHI=3, RESIDENT=False, **small, **last)
end = dict(FRESH=False, FIRST=False, RESIDENT=False, SP=16)
build(solve.solve_sets, (*one, "y", "start"), KIND=0, PHI=2, **end, **tile)
build(solve.normalize, KIND=1, **tile)
build(passes.sample_sets, one, PHI=3, **tile)
build(passes.moments_pass, one, PHI=2, **tile)
build(passes.newton_pass, (*one, "memory"), PHI=1, FIRST=True, SP=16, **tile)
build(passes.newton_pass, PHI=3, FIRST=False, SP=16, **tile)
build(back.differentiate_sets, ("exponents",), KIND=0, PHI=1, LEARNED=False, RESIDENT=True, **tile)
build(back.reach_pass, **tile)
build(back.gradient_pass, KIND=0, PHI=3, LEARNED=True, WRITE=False, SP=16, **tile)
build(back.gradient_pass, ("exponents",), KIND=2, PHI=0, LEARNED=False, WRITE=True, SP=16, **tile)
"""


@pytest.mark.skipif(not triton_norm.available(), reason="Triton is not installed: it exists for Linux only")
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """Triton brings its assembler with it, so this needs no device."""
    assert len(run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).split()) == 12
