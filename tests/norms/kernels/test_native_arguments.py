"""What goes over the border to the native kernels: the structs of the header, and arguments that are refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from augserve.norms import AugNorm2d, BatchNorm1d
from augserve.norms.kernels import dispatch, native
from augserve.norms.kernels.spec import AUG, Groups, Spec
from augserve.norms.median import native as median_native
from tests.norms.kernels.native_cases import NEEDS_LIBRARY, NORMS, data

pytestmark = NEEDS_LIBRARY

HEADER = Path(__file__).parents[3] / "native" / "include" / "augserve.h"


def test_structs_are_those_of_the_header() -> None:
    if not HEADER.exists():
        pytest.skip("the header is not part of the installed package")
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    packed = {"forward": native._FORWARD, "backward": native._BACKWARD, "median": median_native._MEDIAN}
    for name, form in packed.items():
        body = re.search(rf"typedef struct augserve_{name} \{{(.*?)\}}", text, flags=re.S)
        assert body is not None
        kinds = ""
        for field in body.group(1).split(";"):
            words = field.replace("const ", "").split(None, 1)
            if len(words) < 2:
                continue
            for variable in words[1].split(","):
                pointer = "*" in variable or "*" in words[0]
                kind = "q" if pointer or words[0] == "int64_t" else "d" if words[0] == "double" else "qqq"
                kinds += kind
        expanded = "".join(kind * int(count or 1) for count, kind in re.findall(r"(\d*)([qd])", form.format))
        assert kinds == expanded, name
        assert struct.calcsize(form.format) == 8 * len(kinds)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="exponent"):
        native.forward(data((4, 3)), None, None, None, None, Spec(AUG, 0.5, 1e-5, 1e-5, 32))
    with pytest.raises(ValueError, match="1 value"):
        BatchNorm1d(3)(data((1, 3)))


def test_memory_that_is_not_there_is_never_read() -> None:
    x, spec = data((4, 3, 5, 5)), NORMS["aug-1.5"]
    for weight in (
        torch.ones(2),
        torch.ones(3, dtype=torch.float64),
        torch.ones(6)[::2],
        torch.ones(3, device="meta"),
    ):
        with pytest.raises(ValueError, match="expected 3 numbers"):
            native.forward(x, weight, None, None, None, spec)
    statistics = dispatch.norm_forward(x, None, None, None, None, *spec)[1]
    with pytest.raises(ValueError, match="shape of x"):
        native.backward(x[:2], x, None, statistics, None, spec)
    with pytest.raises(ValueError, match="expected 12 numbers"):
        native.backward(x, x, None, statistics[:3], None, spec)
    order = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="expected 4 numbers"):
        native.grouped(x, None, None, None, None, Groups(order, torch.tensor([0, 3])), torch.zeros(1), spec)
    wide = nn.Parameter(torch.ones(1)).expand(3)  # a parameter without memory of its own
    layer = AugNorm2d(3)
    y = torch.func.functional_call(layer, {"weight": wide}, (x,))
    torch.testing.assert_close(y, AugNorm2d(3)(x))
