"""Running statistics recomputed over a data set: exactly, not as a moving average.

Each layer gets the statistics that a group holding the whole data set would have: the mean and the variance, the
range, or the generalized median with its certificate, in float64. The layers take their turns in the order in which
they run, because the inputs of one depend on the statistics of those before it. The result does not depend on how
the data are cut into batches.

For the median the values of one layer are gone over several times; they are kept in memory up to a limit, beyond
which the network runs again. With the data of the target domain this is AdaBN (Li et al. 2016, "Revisiting batch
normalization for practical domain adaptation"), with the training set precise statistics (Wu and Johnson 2021,
"Rethinking batch in BatchNorm").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from augserve.errors import InputError, StatisticsError
from augserve.norms.base import StatisticsNorm
from augserve.norms.median.values import Terms, Values
from augserve.norms.modes import evaluating, norm_layers, use_statistics
from augserve.norms.reduction import Local, as_rows, reduced_dims
from augserve.statistics import Statistics

MEMORY = 2**30  # bytes of one layer's inputs


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` did.

    Args:
        calibrated: names of the layers, in the order in which they run.
        unused: names of the layers that the data did not reach; they are as they were.
        rows: rows of the data set, as the first layer saw them.
    """

    calibrated: tuple[str, ...]
    unused: tuple[str, ...]
    rows: int


@torch.no_grad()
def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[Any], Any] | None = None,
    memory: int = MEMORY,
) -> CalibrationReport:
    """Set the running statistics of every norm layer to those of its inputs over a data set, in place.

    running_mean = center, running_var = m / (m - 1) * spread over all m values of a channel (RobustNorm: its
    running denominator or range), num_batches_tracked = the number of batches. The inputs of a layer are those of
    the tracked mode, with the layers before it calibrated. So the tracked mode then answers as the batch mode does
    with the whole data set as one group, up to the factors m / (m - 1).

    Args:
        model: the network; it runs in eval mode, so dropout is off, and is put back as it was.
        loader: batches, each a tensor (N, ...) or a sequence that begins with one. It is gone over several times
            and must give the same rows every time; an iterator is drawn into memory first.
        forward: how to run the network on a batch; None: model(x), on the device of the model's parameters.
        memory: bytes of one layer's inputs that are kept; beyond, the network runs again for each pass.

    Returns:
        Which layers were calibrated.

    Raises:
        InputError: no batch, or one that holds no tensor.
        StatisticsError: no norm layer, one without running statistics, or one that runs twice in a forward pass,
            so that its inputs depend on its own statistics. Nothing is changed.

    Reference: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance"; the median's solver is
    described in `augserve.norms.median.solve`.

    Example:
        >>> from augserve.norms import AugNorm2d
        >>> calibrate(nn.Sequential(AugNorm2d(3)), [torch.randn(4, 3, 8, 8) for _ in range(5)]).rows
        20
    """
    batches = list(loader) if isinstance(loader, Iterator) else loader
    run = forward or _on_device_of(model)
    layers = norm_layers(model)
    if not layers:
        raise StatisticsError("found no norm layer of augserve; convert the network first with convert_norm")
    with evaluating(model), use_statistics(model, Statistics("tracked")):
        rows, count, order = _look(run, batches, layers)
        with _all_or_none([layers[name] for name in order]):
            for name in order:
                _calibrate(name, layers[name], run, batches, memory, count)
    unused = tuple(name for name in layers if name not in order)
    return CalibrationReport(tuple(order), unused, rows)


def _calibrate(
    name: str,
    layer: StatisticsNorm,
    run: Callable[[Any], Any],
    batches: Iterable[Any],
    memory: int,
    count: int,
) -> None:
    values = _Streamed(_Inputs(layer, run, batches, memory))
    center, spread = (part.flatten() for part in layer.statistics_over(values))
    m = values.count()
    if m <= 1:
        raise StatisticsError(f"layer {name!r}: expected more than 1 value per channel in the data set; got {m}")
    if not bool((torch.isfinite(center) & torch.isfinite(spread)).all()):
        raise StatisticsError(f"layer {name!r}: its inputs hold NaN or inf; check the data and the weights")
    for key, value in (("running_mean", center), (layer.spread, layer.unbiased(spread, m))):
        buffer = layer.get_buffer(key)
        buffer.copy_(value.to(buffer.dtype))
    layer.get_buffer("num_batches_tracked").fill_(count)


def _look(
    run: Callable[[Any], Any], batches: Iterable[Any], layers: dict[str, StatisticsNorm]
) -> tuple[int, int, list[str]]:
    """Run the network once over the data: the number of rows and of batches, and the layers as they first ran."""
    order: list[str] = []
    seen: list[str] = []
    sizes: list[int] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            seen.append(name)
            sizes.append(_layer_input(inputs, options).shape[0])

        return hook

    handles = [layer.register_forward_pre_hook(note(name), with_kwargs=True) for name, layer in layers.items()]
    rows = count = 0
    try:
        for batch in batches:
            seen.clear()
            sizes.clear()
            run(batch)
            rows, count = rows + (sizes[0] if sizes else 0), count + 1
            twice = next((name for name in seen if seen.count(name) > 1), None)
            if twice is not None:
                raise StatisticsError(
                    f"layer {twice!r} runs more than once in a forward pass: its inputs depend on its own running "
                    "statistics; use a layer for each place, or train with momentum=None"
                )
            order += [name for name in seen if name not in order]
            if seen != [name for name in order if name in seen]:
                raise StatisticsError(
                    f"the norm layers run in another order in some batches ({', '.join(seen)}): their inputs "
                    "depend on the batch"
                )
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InputError("expected at least one batch to calibrate with; got none")
    if not order:
        raise StatisticsError("the data reached no norm layer")
    return rows, count, order


class _Reached(BaseException):
    """Ends a forward pass at the layer whose input was wanted; no network has reason to catch it."""


class _Inputs:
    """The inputs of a layer over the data set, as rows (C, m) in float64, a chunk for each batch."""

    def __init__(
        self, layer: StatisticsNorm, run: Callable[[Any], Any], batches: Iterable[Any], memory: int
    ) -> None:
        self.layer, self.run, self.batches, self.memory = layer, run, batches, memory
        self.kept: list[Tensor] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        if self.kept is not None:
            yield from (chunk.double() for chunk in self.kept)
            return
        kept: list[Tensor] | None = []
        size = 0
        for chunk in self._fresh():
            size += chunk.numel() * chunk.element_size()
            if kept is not None and size <= self.memory:
                kept.append(chunk)
            else:
                kept = None
            yield chunk.double()
        self.kept = kept

    def _fresh(self) -> Iterator[Tensor]:
        caught: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            x = _layer_input(inputs, options)
            caught.append(as_rows(x, reduced_dims(x)))
            raise _Reached

        handle = self.layer.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for batch in self.batches:
                with suppress(_Reached):
                    self.run(batch)
                if caught:
                    yield caught.pop()
        finally:
            handle.remove()


@dataclass(frozen=True)
class _Streamed(Values):
    """Values that are gone over chunk by chunk, each with the same functions applied."""

    inputs: _Inputs
    functions: tuple[tuple[Callable[..., Tensor], tuple[Tensor, ...]], ...] = ()

    @property
    @override
    def dtype(self) -> torch.dtype:
        return torch.float64

    def _chunks(self) -> Iterator[Tensor]:
        for chunk in self.inputs:
            for function, statistics in self.functions:
                chunk = function(chunk, *statistics)  # noqa: PLW2901
            yield chunk

    @override
    def sums(self, terms: Terms, *statistics: Tensor) -> list[Tensor]:
        totals: list[Tensor] = []
        for chunk in self._chunks():
            parts = [ROWS.sum(part) for part in terms(chunk, *statistics)]
            totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts
        return totals

    @override
    def extremes(self) -> tuple[Tensor, Tensor]:
        low = high = None
        for chunk in self._chunks():
            if chunk.shape[1]:
                least, most = ROWS.amin(chunk), ROWS.amax(chunk)
                low = least if low is None else torch.minimum(low, least)
                high = most if high is None else torch.maximum(high, most)
        if low is None or high is None:
            raise StatisticsError(f"{type(self.inputs.layer).__name__}: the data set has no value for it")
        return low, high

    @override
    def count(self) -> int:
        return sum(chunk.shape[1] for chunk in self.inputs)

    @override
    def map(self, function: Callable[..., Tensor], *statistics: Tensor) -> Values:
        return replace(self, functions=(*self.functions, (function, statistics)))


ROWS = Local((1,))


def _layer_input(inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> Tensor:
    return inputs[0] if inputs else options["x"]


@contextmanager
def _all_or_none(layers: list[StatisticsNorm]) -> Iterator[None]:
    """Put the buffers back as they were where an error ends the block."""
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    try:
        yield
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise


def _input_of(batch: Any) -> Tensor:
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(first, Tensor):
        raise InputError(
            f"expected batches that are a tensor or begin with one; got {type(batch).__name__}; give `forward`"
        )
    return first


def _on_device_of(model: nn.Module) -> Callable[[Any], Any]:
    first = next((p for p in (*model.parameters(), *model.buffers())), None)
    return lambda batch: model(_input_of(batch) if first is None else _input_of(batch).to(first.device))
