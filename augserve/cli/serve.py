"""The command `augserve serve`: the service, set by flags; `--check` loads and checks without serving.

A flag for each field of `service.settings.Settings`, under its name; one that is not given is left to the
environment, the file of --config and the defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augserve.cli import show
from augserve.errors import ModelFileError

if TYPE_CHECKING:
    from augserve.service import Predictor, Settings


def serve(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help=".onnx files, and folders of NAME.onnx or NAME/VERSION/model.onnx. [default: AUGSERVE_MODEL]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings. [default: AUGSERVE_CONFIG]", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="See whether it would serve: load and check all, then end.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8000]")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Most rows in a run, and in a statistics group. [default: 256]")
    ] = None,
    preferred_batch_size: Annotated[
        int | None, typer.Option(help="Rows that fill a run. [default: 64 on a CPU, else --max-batch-size]")
    ] = None,
    batch_timeout_s: Annotated[
        float | None, typer.Option(help="Longest wait for others to share a run. [default: 0]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time. [default: 1; on two cores up to 2]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads in one run; 0: one a core. [default: 0]")] = None,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime providers, by commas. [default: CPUExecutionProvider]")
    ] = None,
    provider_fallback: Annotated[
        bool | None,
        typer.Option(
            "--provider-fallback/--no-provider-fallback",
            help="Let the next provider take over from one that does not start. [default: no]",
        ),
    ] = None,
    fold_tracked: Annotated[
        bool | None,
        typer.Option(
            "--fold-tracked/--no-fold-tracked",
            help="Run requests with tracked statistics on a folded graph. [default: yes]",
        ),
    ] = None,
    warmup_sizes: Annotated[
        str | None,
        typer.Option(help="Rows of runs before the first request, by commas. [default: 1; on a GPU 1,2,4..]"),
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Requests that may wait. [default: 128]")] = None,
    request_timeout_s: Annotated[float | None, typer.Option(help="Seconds one may wait. [default: 30]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest body. [default: 33554432]")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Most rows in a request. [default: 4096]")] = None,
    max_image_pixels: Annotated[int | None, typer.Option(help="Largest image. [default: 16777216]")] = None,
    repository_poll_s: Annotated[
        float | None, typer.Option(help="Seconds between looks at the folders; 0: never. [default: 5]")
    ] = None,
    repository_control: Annotated[
        bool | None,
        typer.Option(
            "--repository-control/--no-repository-control",
            help="Let callers load and unload models. [default: no]",
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="File of API keys, NAME:KEY a line. [default: none]", show_default=False)
    ] = None,
    metrics_open: Annotated[
        bool | None,
        typer.Option("--metrics-open/--no-metrics-open", help="Ask for no key at /metrics. [default: no]"),
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option("--access-log/--no-access-log", help="A line of JSON a request on stderr. [default: no]"),
    ] = None,
) -> None:
    """Serve models over HTTP: POST /predict, and /docs to read. Stops at Ctrl-C or SIGTERM.

    Every setting is also an environment variable, such as AUGSERVE_PORT, and a key of the file that --config names;
    a flag wins, then the variable. Keys may also stand in AUGSERVE_API_KEYS, parted by commas.

    \b
    Examples:
      augserve serve model.onnx
      augserve serve a.onnx b.onnx models/ --host 0.0.0.0 --port 9000
      augserve serve models/ --config augserve.toml --check
    """
    from augserve.service import read_settings
    from augserve.service import serve as run_server

    settings = read_settings(
        config,
        model=tuple(paths) if paths else None,
        host=host,
        port=port,
        max_batch_size=max_batch_size,
        preferred_batch_size=preferred_batch_size,
        batch_timeout_s=batch_timeout_s,
        workers=workers,
        threads=threads,
        providers=providers,
        provider_fallback=provider_fallback,
        fold_tracked=fold_tracked,
        warmup_sizes=warmup_sizes,
        queue_limit=queue_limit,
        request_timeout_s=request_timeout_s,
        max_body_bytes=max_body_bytes,
        max_rows=max_rows,
        max_image_pixels=max_image_pixels,
        repository_poll_s=repository_poll_s,
        repository_control=repository_control,
        api_keys_file=api_keys_file,
        metrics_open=metrics_open,
        access_log=access_log,
    )
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in settings.model_dump(mode="json").items())
    show.out.print(f"settings: {shown}")
    if check:
        _check(settings)
        return
    run_server(
        settings,
        on_ready=lambda url: show.out.print(
            f"serving {', '.join(map(str, settings.model))} at {url} (docs: {url}/docs)"
        ),
    )
    show.out.print("stopped")


def _shown(value: object) -> str:
    """Return a setting as text, several values by commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check(settings: Settings) -> None:
    """Read the keys, open and check every model, and print a line for each; the address is left alone.

    Raises:
        ConfigurationError: keys that cannot be read.
        ModelFileError: no model, or one that would not serve.
    """
    from augserve.service.http.keys import read_api_keys
    from augserve.service.lifecycle import Service
    from augserve.service.model.repository import check_paths

    asked = read_api_keys(settings.api_keys_file) is not None
    show.out.print(f"API keys: {'asked for' if asked else 'none, everyone who reaches the port may ask'}")
    check_paths(settings.model)
    service = Service(settings)
    try:
        with _quiet("augserve.service.model.repository"):  # what went wrong stands in the index
            service.models.refresh()
        open_versions = {(one.name, one.version): one for one in service.models.predictors()}
        index = service.models.index()
        for status in index:
            predictor = open_versions.get((status.name, status.version))
            told = _told(predictor) if predictor is not None else f"would not serve: {status.reason}"
            show.out.print(f"{status.name} version {status.version}: {' '.join(told.split())}")
    finally:
        service.scheduler.close()
    failed = [status for status in index if (status.name, status.version) not in open_versions]
    if failed:
        first = failed[0]
        raise ModelFileError(
            f"{len(failed)} of {len(index)} models would not serve; {first.name} version {first.version}: "
            f"{first.reason}"
        )
    if not index:
        where = ", ".join(map(str, settings.model))
        raise ModelFileError(f"{where}: expected .onnx files, or folders name/version/model.onnx; found none")
    show.out.print(f"{len(index)} of {len(index)} models would serve")


def _told(predictor: Predictor) -> str:
    """Return what is worth knowing of a version that serves."""
    manifest, adaptive = predictor.manifest, predictor.manifest.mode == "adaptive"
    shapes = " or ".join("x".join(map(str, shape)) for shape in manifest.shapes)
    modes = f"{', '.join(manifest.modes)}; default {manifest.default_mode}" if adaptive else manifest.mode
    parts = [
        f"rows {shapes}",
        f"{len(manifest.classes)} classes",
        f"statistics {modes}",
        "images or rows" if manifest.preprocessing is not None else "rows of numbers only",
        predictor.adaptive.session.get_providers()[0],
    ]
    if adaptive:
        folded = predictor.tracked is not predictor.adaptive
        parts.append(f"tracked rows on {'a folded graph' if folded else 'the same graph'}")
    return "; ".join(parts)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Leave out what a logger says below critical."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
