"""The operators for ONNX Runtime's CUDA provider: their kernels on emulated threads, and the library made by nvcc.

A C++ compiler builds all of native/cuda for the CPU provider, with CUDA's threads emulated: the answers, groups and
errors are tried everywhere. What nvcc makes of the same sources is run where there is a device.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from augserve.export import export_onnx
from augserve.norms import AugNorm2d
from augserve.operators import DOMAIN
from tests.export.conftest import small_network
from tests.export.operators.native_operator_cases import (
    ENDINGS,
    INPUTS,
    OPERATORS,
    Feed,
    feed,
    one_node,
    run,
    some_rows,
)
from tests.tolerances import PARITY

SOURCES = Path(__file__).resolve().parents[3] / "native" / "cuda"
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/local/cuda/bin"])
LIBRARY = "libaugserve_native_cuda.so"
ALL_ENDINGS = ("", *ENDINGS)
Opener = Callable[[bytes], ort.InferenceSession]


def devices() -> int:
    """How many CUDA devices the driver knows; without one, 0."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


HAS_DEVICE = devices() > 0 and "CUDAExecutionProvider" in ort.get_available_providers()


def build(folder: Path, *options: str) -> Path:
    """Compile native/cuda into a folder; return the library."""
    environment = {**os.environ, "PATH": TOOLS}
    for command in (
        ["cmake", "-S", SOURCES, "-B", folder, "-G", "Ninja", "-DAUGSERVE_WERROR=ON", *options],
        ["cmake", "--build", folder, "--parallel", "1"],
    ):
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / LIBRARY


def require(*tools: str) -> None:
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    for tool in tools:
        if shutil.which(tool, path=TOOLS) is None:
            pytest.skip(f"needs {tool}")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for the CPU provider, with emulated threads; the programs of native/cuda/tests beside it."""
    require("cmake", "ninja", "c++")
    folder = tmp_path_factory.mktemp("emulated")
    return build(folder, "-DAUGSERVE_EMULATED=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that nvcc makes, for one architecture."""
    require("cmake", "ninja", "c++", "nvcc")
    return build(
        tmp_path_factory.mktemp("cuda"), f"-DCMAKE_CUDA_ARCHITECTURES={'native' if HAS_DEVICE else '90-real'}"
    )


def session(
    model: bytes, operators: Path | None = None, provider: str = "CPUExecutionProvider"
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if operators is not None:
        options.register_custom_ops_library(str(operators))
    return ort.InferenceSession(model, options, providers=[provider])


def relu() -> bytes:
    """A file without operators of ours."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def exported(path: Path) -> bytes:
    export_onnx(small_network(AugNorm2d), path, example=torch.randn(9, 3, 8, 8), mode="adaptive", native="off")
    return path.read_bytes()


def network_feed() -> Feed:
    values = feed(9, channels=3, positions=(8, 8))
    return {"input": values["x"], "group": values["group"], "tracked_weight": values["tracked_weight"]}


# --- emulated --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", sorted(path.stem for path in (SOURCES / "tests").glob("*.cpp")))
def test_program(emulated: Path, program: str) -> None:
    command = [emulated.parent / f"test_{program}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("ending", ALL_ENDINGS)
@pytest.mark.parametrize("name", OPERATORS)
def test_emulated_operator_answers_as_its_function(emulated: Path, name: str, ending: str) -> None:
    model = one_node(name + ending)
    kernels, functions = session(model, emulated), session(model)
    for rows, positions in ((1, (3, 4)), (9, (7, 5)), (4, (33, 33))):
        values = feed(rows, positions=positions)
        np.testing.assert_allclose(run(kernels, values), run(functions, values), atol=PARITY, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_emulated_operator_in_float16(emulated: Path, name: str) -> None:
    values = feed(6)
    half = {key: values[key].astype(np.float16) for key in ("x", "residual")}
    y = run(session(one_node(f"{name}AddRelu", dtype=TensorProto.FLOAT16), emulated), {**values, **half})
    wide = {key: value.astype(np.float32) for key, value in half.items()}
    expected = run(session(one_node(f"{name}AddRelu"), emulated), {**values, **wide})
    np.testing.assert_array_equal(y, expected.astype(np.float16))


@pytest.mark.parametrize("shape", [("N", "C"), ("N", "C", "L"), ("N", "C", "D", "H", "W")])
def test_emulated_operator_of_other_ranks(emulated: Path, shape: tuple[str, ...]) -> None:
    model = one_node("AugNormAddRelu", shape)
    values = feed(24, positions=(2, 3, 4)[: len(shape) - 2])
    y = run(session(model, emulated), values)
    np.testing.assert_allclose(y, run(session(model), values), atol=PARITY, rtol=0)


def test_emulated_groups_of_sets_in_parts(emulated: Path) -> None:
    model = one_node("AugNorm")
    opened = session(model, emulated)
    values = feed(5, channels=2, positions=(150, 140))  # two rows of a group are more than a block takes
    values |= {"group": np.array([3, 0, 3, 1, 3]), "tracked_weight": np.array([0, 1, 0, 0.4, 0], np.float32)}
    together = run(opened, values)
    np.testing.assert_allclose(together, run(session(model), values), atol=PARITY, rtol=0)
    mine = values["group"] == 3
    np.testing.assert_array_equal(together[mine], run(opened, some_rows(values, mine)))


def test_emulated_network_answers_as_its_functions(emulated: Path, tmp_path: Path) -> None:
    model = exported(tmp_path / "m.onnx")
    values = network_feed()
    np.testing.assert_allclose(
        run(session(model, emulated), values), run(session(model), values), atol=PARITY, rtol=0
    )


def test_emulated_operator_refuses_as_that_of_the_cpu(emulated: Path) -> None:
    values = feed(4) | {"group": np.zeros(4, np.int64), "tracked_weight": np.zeros(4, np.float32)}
    opened = session(one_node("AugNormAdd"), emulated)
    told = {
        "group of row 2 is 4; expected an id from 0 to 3": {"group": np.array([0, 1, 4, 0])},
        "tracked_weight of row 3 is nan": {"tracked_weight": np.array([0, 0, 0, np.nan], np.float32)},
        "weight has 4 values; expected one dimension of 5": {"weight": np.ones(4, np.float32)},
        "residual has another shape than x": {"residual": np.ones((4, 5, 7, 1), np.float32)},
    }
    for text, wrong in told.items():
        with pytest.raises(Exception, match=rf"augserve\.AugNormAdd: .*{re.escape(text)}"):
            run(opened, values | wrong)
    with pytest.raises(Exception, match=r"augserve\.AugNorm: the node has no attribute phi, a float"):
        session(one_node("AugNorm", attributes={"eps": 1e-5}), emulated)
    with pytest.raises(Exception, match=r"augserve\.RobustNorm: the exponent is out of range"):
        session(one_node("RobustNorm", attributes={"p": 0.0, "eps": 1e-5}), emulated)


# --- by nvcc ---------------------------------------------------------------------------------------------


def exported_symbols(path: Path) -> set[str]:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    return {line.split()[-1] for line in listed.stdout.splitlines()}


@pytest.mark.slow
def test_the_library_offers_one_function_and_needs_no_driver(library: Path, emulated: Path) -> None:
    script = """
import ctypes, sys
ctypes.CDLL(sys.argv[1]).RegisterCustomOps
print("libcuda.so" in open("/proc/self/maps").read())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(library)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
    if shutil.which("nm"):
        assert exported_symbols(library) == exported_symbols(emulated) == {"RegisterCustomOps"}


@pytest.mark.slow
def test_registration_needs_no_device(library: Path) -> None:
    values = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(session(relu(), library).run(None, {"x": values})[0], [0, 2])
    # The CPU provider finds the operator's name, but no kernel: such a session is told when it is opened.
    with pytest.raises(Exception, match=r"implementation for AugNorm\b"):
        session(one_node("AugNorm"), library)


def on_device(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs the kernels on a GPU."""
    skip = pytest.mark.skipif(not HAS_DEVICE, reason="needs a CUDA device, and an ONNX Runtime for it")
    marked: Callable[..., None] = pytest.mark.gpu(pytest.mark.slow(skip(test)))
    return marked


@pytest.fixture(scope="module")
def device(library: Path) -> Opener:
    """Opens a file for the CUDA provider, with the operators."""
    if "CUDAExecutionProvider" not in session(relu(), provider="CUDAExecutionProvider").get_providers():
        pytest.skip("ONNX Runtime's CUDA provider does not start: are the CUDA libraries that it needs installed?")
    return lambda model: session(model, library, "CUDAExecutionProvider")


@on_device
@pytest.mark.parametrize("ending", ALL_ENDINGS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_answers_as_its_function(device: Opener, name: str, ending: str) -> None:
    model = one_node(name + ending)
    kernels, functions = device(model), session(model)
    for rows, positions in ((1, (3, 4)), (9, (7, 5)), (32, (32, 32)), (6, (150, 150))):
        values = feed(rows, positions=positions)
        y = run(kernels, values)
        np.testing.assert_allclose(y, run(functions, values), atol=PARITY, rtol=0)
        np.testing.assert_array_equal(y, run(kernels, values))


@on_device
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("positions", [(2, 2), (20, 20), (60, 60), (150, 150)])
def test_a_group_is_to_the_bit_what_it_is_alone_and_beside_nan(
    device: Opener, name: str, positions: tuple[int, ...]
) -> None:
    opened = device(one_node(name))
    values = feed(19, channels=11, positions=positions)
    together = run(opened, values)
    groups = np.unique(values["group"])
    for g in groups:
        mine = values["group"] == g
        np.testing.assert_array_equal(together[mine], run(opened, some_rows(values, mine)))
    broken = values["group"] == groups[0]
    x = np.array(values["x"])
    x[broken] = np.nan
    np.testing.assert_array_equal(run(opened, values | {"x": x})[~broken], together[~broken])


@on_device
@pytest.mark.parametrize("name", OPERATORS)
def test_float16(device: Opener, name: str) -> None:
    values = feed(13)
    half = {key: values[key].astype(np.float16) for key in ("x", "residual")}
    y = run(device(one_node(f"{name}AddRelu", dtype=TensorProto.FLOAT16)), {**values, **half})
    wide = {key: value.astype(np.float32) for key, value in half.items()}
    expected = run(session(one_node(f"{name}AddRelu")), {**values, **wide})
    np.testing.assert_allclose(y, expected, atol=PARITY, rtol=2**-10)


@on_device
def test_network(device: Opener, tmp_path: Path) -> None:
    model = exported(tmp_path / "m.onnx")
    values = network_feed()
    np.testing.assert_allclose(run(device(model), values), run(session(model), values), atol=PARITY, rtol=0)


def test_every_input_of_a_node_is_known_here() -> None:
    """Groups are read on the host: their place among the inputs is written in the header of both libraries."""
    header = (SOURCES.parent / "src" / "ort" / "operators.hpp").read_text()
    found = re.search(r"enum Input : std::size_t \{ ([A-Z_, ]+) \};", header)
    assert found is not None
    assert tuple(name.lower() for name in found[1].split(", ")) == (*INPUTS, "exponents")
    assert re.search(rf'DOMAIN_NAME\[\] = "{DOMAIN}"', header)
