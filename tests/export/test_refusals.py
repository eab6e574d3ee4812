"""What cannot be exported is refused with the reason and the fix, the layer by its path; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from augserve.cli import app
from augserve.errors import ExportError
from augserve.export import export_onnx, open_session
from augserve.export.opsets import newest_opset
from augserve.norms import AugNorm2d, BatchNorm2d
from augserve.runtime import read_manifest, run_rows
from tests.export.conftest import small_network
from tests.tolerances import PARITY

pytestmark = pytest.mark.slow

NEWEST = newest_opset()
FIXES_ROWS = "can be traced for some numbers N of rows"


class Around(nn.Module):
    """A network with one layer in question, two levels down."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = BatchNorm2d(3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), layer)])
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class Layer(nn.Module):
    """A layer with this forward."""

    def __init__(self, apply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.apply_to = apply

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(x)


def halve(x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


def refused(network: nn.Module, path: Path, mode: str = "adaptive", **options: object) -> str:
    path.write_bytes(b"old")
    with pytest.raises(ExportError) as caught:
        export_onnx(network, path, example=torch.randn(4, 3, 8, 8), mode=mode, **options)
    assert path.read_bytes() == b"old"
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("layer", "mode", "words"),
    [
        (nn.BatchNorm2d(3), "tracked", ["(torch.nn.BatchNorm2d) is left in train mode", "model.eval()"]),
        (nn.BatchNorm2d(3), "adaptive", ["(torch.nn.BatchNorm2d) has no explicit statistics", "convert_norm"]),
        (nn.SyncBatchNorm(3), "tracked", ["(torch.nn.SyncBatchNorm) is left in train mode", "model.eval()"]),
        (nn.SyncBatchNorm(3), "batch", ["(torch.nn.SyncBatchNorm) has no explicit statistics", "convert_norm"]),
        (
            nn.BatchNorm2d(3, track_running_stats=False).eval(),
            "tracked",
            ["keeps no running statistics", "convert_norm"],
        ),
        (
            AugNorm2d(3, track_running_stats=False),
            "tracked",
            ["(AugNorm2d) keeps no running statistics, which a file of mode tracked needs", "mode 'batch'"],
        ),
        (nn.InstanceNorm2d(3, track_running_stats=True), "adaptive", ["has no explicit statistics"]),
    ],
)
def test_norms_that_mean_something_else_are_refused(
    layer: nn.Module, mode: str, words: list[str], tmp_path: Path
) -> None:
    message = refused(Around(layer), tmp_path / "m.onnx", mode)
    assert message.startswith("layer 'blocks.1.1' (")
    assert all(word in message for word in words), message


def test_torch_norms_in_eval_mode_are_exported_as_tracked(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    for layer in (nn.BatchNorm2d(3), nn.SyncBatchNorm(3)):
        network = Around(layer).eval()
        layer.running_mean = torch.tensor([0.5, -1.0, 2.0])
        assert export_onnx(network, tmp_path / "m.onnx", example=x, mode="tracked").max_abs_difference <= PARITY


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda x: x if x.sum() > 0 else -x, "torch.where or torch.cond"),
        (halve, "torch.where or torch.cond"),
        (lambda x: x if x.mean().item() > 0 else -x, "torch.where or torch.cond"),
        (
            lambda x: x + torch.linalg.eigvals(x).real.unsqueeze(-1),
            "calls aten.linalg_eig, an operator without a form",
        ),
    ],
    ids=["if", "while", "item", "operator"],
)
def test_what_torch_cannot_trace_is_refused_by_its_path(
    apply: Callable[[Tensor], Tensor], words: str, tmp_path: Path
) -> None:
    message = refused(Around(Layer(apply)), tmp_path / "m.onnx")
    assert "layer 'blocks.1.1' (Layer)" in message
    assert words in message


@pytest.mark.parametrize(
    "apply",
    [
        lambda x: x if x.shape[0] > 100 else x + 1,  # more rows than the parity report looks at
        lambda x: x if x.shape[0] < 3 else x + 1,
        lambda x: torch.stack([2 * row for row in x]),
        lambda x: x.view(3, 3, 8, 8) if len(x) == 3 else x,
    ],
    ids=["more", "fewer", "loop", "view"],
)
def test_layers_that_ask_for_the_number_of_rows_are_refused(
    apply: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    message = refused(Around(Layer(apply)), tmp_path / "m.onnx")
    assert message.startswith(f"layer 'blocks.1.1' (Layer) {FIXES_ROWS}")
    assert "x.shape[0]" in message


def test_the_network_itself_is_named_where_its_own_code_is_the_cause(tmp_path: Path) -> None:
    class Branching(Around):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits if logits.sum() > 0 else -logits

    class Long(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head((y if x.shape[0] > 100 else y + 1).mean(dim=(2, 3)))

    assert "cannot trace Branching: " in refused(Branching(nn.Identity()), tmp_path / "m.onnx", "tracked")
    assert refused(Long(nn.Identity()), tmp_path / "m.onnx", "tracked").startswith(f"Long {FIXES_ROWS}")


def test_the_layer_that_asks_is_told_from_the_one_after_it(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Identity(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            x = x if x.shape[0] > 100 else x + 1
            return self.other(x)

    assert refused(Around(Pair()), tmp_path / "m.onnx", "tracked").startswith(
        f"layer 'blocks.1.1' (Pair) {FIXES_ROWS}"
    )


def test_what_torch_traces_in_its_own_way_answers_as_the_network(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    for apply in (
        Doubled.apply,
        lambda x: x * 2 if x.shape[1] == 3 else x,
        lambda x: torch.where(x.sum() > 0, x, -x),
    ):
        network = Around(Layer(apply)).eval()
        export_onnx(network, tmp_path / "m.onnx", example=x)
        with torch.no_grad():
            expected = network(x)
        torch.testing.assert_close(
            torch.from_numpy(run_rows(open_session(tmp_path / "m.onnx"), x.numpy())), expected, atol=PARITY, rtol=0
        )


@pytest.mark.parametrize("opset", [19, NEWEST])
@pytest.mark.parametrize("mode", ["adaptive", "tracked"])
def test_a_newer_opset_is_that_of_the_whole_file(opset: int, mode: str, rows: Tensor, tmp_path: Path) -> None:
    network = small_network(lambda c: AugNorm2d(c, learn_phi=True))  # functions that call functions
    report = export_onnx(network, tmp_path / "m.onnx", example=rows, mode=mode, opset=opset)
    assert report.max_abs_difference <= PARITY
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    imports = [*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)]
    assert {entry.version for entry in imports if entry.domain == ""} == {opset}
    assert {entry.version for entry in imports if entry.domain == "augserve"} == (
        {1} if mode == "adaptive" else set()
    )
    assert model.ir_version >= onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    manifest = read_manifest(open_session(tmp_path / "m.onnx"))
    assert manifest.opset == opset


def test_opsets_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    assert NEWEST > 18
    network = small_network(BatchNorm2d)
    old = refused(network, tmp_path / "m.onnx", opset=17)
    assert "expected opset 18 or newer; got 17: the norms are made of ScatterElements" in old
    assert "export with opset 18" in old
    new = refused(network, tmp_path / "m.onnx", opset=NEWEST + 1)
    assert f"expected an opset from 18 to {NEWEST}, the newest that onnx" in new
    assert f"got {NEWEST + 1}" in new


def test_the_command_takes_an_opset() -> None:
    shown = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "200"})
    assert "--opset" in shown.output
