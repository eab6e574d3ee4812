"""The command `augserve serve`: the service, set by flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augserve import console


def serve(
    path: Annotated[
        Path | None,
        typer.Argument(help="The .onnx file to serve. [default: AUGSERVE_MODEL]", show_default=False),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="Requests run at a time. [default: 1]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads in one run; 0: one a core. [default: 0]")] = None,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime providers, by commas. [default: CPUExecutionProvider]")
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Requests that may wait. [default: 64]")] = None,
    request_timeout_s: Annotated[float | None, typer.Option(help="Seconds one may wait. [default: 30]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest body. [default: 33554432]")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Most rows in a request. [default: 4096]")] = None,
    max_image_pixels: Annotated[int | None, typer.Option(help="Largest image. [default: 16777216]")] = None,
) -> None:
    """Serve a file over HTTP: POST /predict, and /docs to read. Stops at Ctrl-C or SIGTERM.

    Every setting is also an environment variable, such as AUGSERVE_PORT; a flag wins.

    \b
    Examples:
      augserve serve model.onnx
      augserve serve model.onnx --host 0.0.0.0 --port 9000
    """  # noqa: D301 - \b is for click
    from augserve.service import read_settings
    from augserve.service import serve as run_server

    settings = read_settings(
        model=path,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        providers=providers,
        queue_limit=queue_limit,
        request_timeout_s=request_timeout_s,
        max_body_bytes=max_body_bytes,
        max_rows=max_rows,
        max_image_pixels=max_image_pixels,
    )
    shown = ", ".join(f"{name}={value}" for name, value in settings.model_dump(mode="json").items())
    console.out.print(f"settings: {shown}", markup=False)
    run_server(
        settings,
        on_ready=lambda url: console.out.print(
            f"serving {', '.join(map(str, settings.model))} at {url} (docs: {url}/docs)"
        ),
    )
    console.out.print("stopped")
