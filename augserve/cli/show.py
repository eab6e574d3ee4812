"""What the commands show a person: progress, tables, numbers with units. Only this file and cli print."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from augserve.bench.files import FileRow
    from augserve.bench.median import MedianRow, MedianSummary
    from augserve.bench.networks import NetworkRow
    from augserve.bench.norms import NormRow
    from augserve.data import ImageSet
    from augserve.installation import Installation
    from augserve.manifest import Accuracy, Manifest, ParityCheck
    from augserve.runtime.kernels import Kernels
    from augserve.training import EpochMetrics, TrainConfig

# Names of files and classes are shown as they are: nothing in them is markup or an emoji, and none is cut.
out, err = (
    Console(
        stderr=stderr,
        highlight=False,
        soft_wrap=True,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",  # Rich by itself would leave out colours only
    )
    for stderr in (False, True)
)


def show_error(message: str) -> None:
    """Print what went wrong, on one line of stderr."""
    err.print("error: " + " ".join(message.split()), style="red")


class TrainingDisplay:
    """A bar while an epoch runs (on a terminal), one line when it ends; use it as a context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
            TextColumn("{task.fields[rate]:.0f}/s"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task: TaskID | None = None
        self._epochs = 0

    def __enter__(self) -> TrainingDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, config: TrainConfig, data: ImageSet, parameters: int, device: str) -> None:
        """Show what is trained on what."""
        self._epochs = config.epochs
        options = "".join(f" {name}={value:g}" for name, value in config.norm_options.items())
        options += ", convolutions with ConvNorm" if config.conv_norm else ""
        out.print(
            f"{config.model} with norm {config.norm}{options} ({parameters:,} parameters) on {data.name}: "
            f"{len(data.train_labels):,} training, {len(data.val_labels):,} validation and "
            f"{len(data.test_labels):,} test images, {device}"
        )
        out.print(f"{'epoch':>7}  {'loss':>7}  {'train':>6}  {'val':>6}  {'rate':>7}  images/s", style="bold")

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._progress.add_task("", total=total, rate=0.0)
        rate = self._progress.tasks[0].speed or 0.0
        self._progress.update(self._task, description=f"epoch {epoch}", completed=done, total=total, rate=rate)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Print the epoch's line."""
        if self._task is not None:
            self._progress.reset(self._task)
        out.print(
            f"{f'{metrics.epoch}/{self._epochs}':>7}  {metrics.train_loss:7.4f}  {metrics.train_accuracy:6.1%}  "
            f"{metrics.val_accuracy:6.1%}  {metrics.learning_rate:7.4f}  {metrics.images_per_second:8.0f}"
        )


def show_parity(checks: Sequence[ParityCheck], title: str = "torch against ONNX Runtime") -> None:
    """Print a parity report as a table."""
    name = Column("check", min_width=22, overflow="fold")
    table = Table(name, "rows", "norms", "max |diff|", "relative", "top 1", "repeats", title=title)
    for check in checks:
        table.add_row(
            check.name,
            str(check.rows),
            "native" if check.native else "standard",
            f"{check.max_abs_difference:.2e}",
            f"{check.max_relative_difference:.1e}",
            f"{check.top1_agreement:.0%}",
            "identical" if check.repeats_identical else "differ",
        )
    out.print(table)


def show_accuracy(precision: str, accuracy: Accuracy) -> None:
    """Print what the rounding of a file costs."""
    out.print(
        f"accuracy on {accuracy.rows:,} validation rows: {accuracy.file:.2%} in {precision}, "
        f"{accuracy.float32:.2%} in float32"
    )


def show_manifest(name: str, manifest: Manifest, kernels: Kernels) -> None:
    """Print what a file says about itself."""
    table = Table("", Column(overflow="fold"), show_header=False, box=None)
    kinds: dict[str, int] = {}
    for layer in manifest.norms:
        phi = f" (phi {float(layer.options['phi']):g})" if "phi" in layer.options else ""
        kinds[layer.kind + phi] = kinds.get(layer.kind + phi, 0) + 1
    classes = ", ".join(manifest.classes[:12]) + (", ..." if len(manifest.classes) > 12 else "")
    made_of = [("made of", f"{manifest.source.file} ({manifest.source.producer})")] if manifest.source else []
    tensors = [
        (kind, ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in specs))
        for kind, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs))
        if specs
    ]
    for key, value in (
        ("file", name),
        *made_of,
        *tensors,
        ("architecture", manifest.architecture),
        ("file mode", manifest.mode),
        ("statistics modes", ", ".join(manifest.modes)),
        ("default mode", manifest.default_mode),
        ("precision", manifest.precision),
        ("rows", " x ".join(str(size) for size in manifest.shape) + " float32"),
        ("classes", f"{len(manifest.classes)}: {classes}"),
        ("norm layers", ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"),
        ("data", manifest.data or "unknown"),
        ("opset", str(manifest.opset)),
        ("written by", ", ".join(f"{package} {version}" for package, version in manifest.versions.items())),
        ("norms run by", str(kernels.library) if kernels.library else f"standard operators ({kernels.reason})"),
        ("checkpoint", manifest.checkpoint_sha256 or "unknown"),
    ):
        table.add_row(key, value)
    out.print(table)
    if manifest.accuracy is not None:
        show_accuracy(manifest.precision, manifest.accuracy)
    if manifest.parity:
        converted = "the original against the converted file"
        show_parity(manifest.parity, *([converted] if manifest.source else []))


def show_installation(installation: Installation) -> None:
    """Print what is installed, and what became of the native library."""
    native = installation.native
    rows = {"augserve": installation.augserve, "python": installation.python}
    rows |= {name: version or "not installed" for name, version in installation.packages.items()}
    rows["native library"] = str(native.path or "none")
    rows["state"] = native.state
    if native.instruction_set:
        rows["instruction set"] = native.instruction_set
    if native.reason:
        rows["reason"] = native.reason
    for name, value in rows.items():
        out.print(f"{name:<16} {value}")  # not a table: a command in the reason can be copied as it stands


def show_predictions(names: Sequence[str], answer: Mapping[str, Any]) -> None:
    """Print an answer as a table, one line a row; with a comparison also the tracked prediction of each."""
    statistics, comparison = answer["statistics"], answer.get("comparison")
    groups = [k for k, size in enumerate(statistics["groups"]) for _ in range(size)]
    table = Table(Column("input", overflow="fold"), Column("label", overflow="fold"), "probability", "group")
    if comparison:
        table.add_column("tracked label", overflow="fold")
        table.add_column("tracked probability")
    for k, (name, prediction, group) in enumerate(zip(names, answer["predictions"], groups, strict=False)):
        top = prediction.get("top_k", [prediction])
        cells = [name, "\n".join(str(one["label"]) for one in top), _probabilities(top), str(group)]
        if comparison:
            tracked = prediction["tracked"]
            differs = " (differs)" if k in comparison["rows"] else ""
            cells += [f"{tracked['label']}{differs}", _probabilities([tracked])]
        table.add_row(*cells)
    out.print(table)
    sizes = ", ".join(str(size) for size in statistics["groups"])
    out.print(f"model {answer['model']}, statistics {statistics['mode']}, group sizes {sizes}")
    if comparison:
        out.print(
            f"with tracked statistics: another class for {len(comparison['rows'])} of {len(groups)} "
            f"({comparison['disagreement']:.0%}), "
            f"probabilities differ by at most {comparison['max_difference']:.3f}"
        )
    for row in statistics["dropped"]:
        out.print(f"dropped: {names[row]}")
    for warning in answer["warnings"]:
        err.print(f"warning: {warning}", style="yellow")


def _probabilities(classes: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(f"{one['probability']:.3f}" for one in classes)


def shown_median_rows(dtype: str, rows: Iterable[MedianRow]) -> Iterator[MedianRow]:
    """Hand on the rows of `augserve bench median`, each printed as it comes."""
    out.print(f"generalized median in {dtype}; errors in standard deviations of the data")
    out.print(f"{'case':<9}  {'phi':>4}  {'m':>6}  {'error':>7}  {'bar':>7}  passes", style="bold")
    for row in rows:
        _print_median_row(row)
        yield row


def _print_median_row(row: MedianRow) -> None:
    bar = f"{row.bar:.1e}" if row.bar < float("inf") else "-"
    line = f"{row.case:<9}  {row.phi:>4g}  {row.m:>6}  {row.error:>7.1e}  {bar:>7}  {row.passes:>6}"
    outside, uncertified = "" if row.inside else ", outside the data", "" if row.certified else ", no certificate"
    out.print(line if row.ok else f"{line}  missed{outside}{uncertified}", style=None if row.ok else "red")


def show_norm_rows(rows: Iterable[NormRow]) -> None:
    """Print the rows of `augserve bench norms`, each as it comes."""
    times = f"{'forward':>10}  {'ratio':>6}  {'and back':>10}  {'ratio':>6}"
    out.print(f"{'shape':<15}  {'norm':<15}  {times}  {'extra memory':>12}", style="bold")
    for row in rows:
        shape = "x".join(map(str, row.shape))
        out.print(
            f"{shape:<15}  {row.norm:<15}  {row.forward_ms:>7.2f} ms  {row.forward_ratio:>6.2f}  "
            f"{row.both_ms:>7.2f} ms  {row.both_ratio:>6.2f}  {row.extra_mib:>8.1f} MiB"
        )


def show_network_rows(rows: Iterable[NetworkRow]) -> None:
    """Print the rows of `augserve bench networks`."""
    out.print(f"{'norm':<12}  {'work':<8}  {'time':>10}  {'images/s':>8}  {'ratio':>6}", style="bold")
    for row in rows:
        out.print(
            f"{row.norm:<12}  {row.work:<8}  {row.ms:>7.1f} ms  {row.images_per_second:>8.0f}  {row.ratio:>6.2f}"
        )


def show_file_rows(rows: Iterable[FileRow]) -> None:
    """Print the rows of `augserve bench files`."""
    out.print(f"{'file':<20}  {'rows':>5}  {'time':>10}  {'ratio':>6}", style="bold")
    for row in rows:
        out.print(f"{row.contestant:<20}  {row.rows or 'load':>5}  {row.ms:>7.1f} ms  {row.ratio:>6.2f}")


def show_median_summary(count: int, summary: MedianSummary) -> None:
    """Print what the rows come to, and those that miss the bar once more."""
    worst = summary.worst
    where = f"{worst.case}, phi {worst.phi:g}, m {worst.m}"
    out.print(
        f"{worst.dtype}: {count} rows, worst error {worst.error:.1e} ({where}), most passes {summary.most_passes}, "
        f"rows that miss the bar: {len(summary.missed)}"
    )
    for row in summary.missed:
        _print_median_row(row)
