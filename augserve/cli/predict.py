"""The command `augserve predict`: images, answered by a file or by a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augserve.cli import show
from augserve.errors import AugserveError, ConfigurationError, InputError, ModelFileError

if TYPE_CHECKING:
    from augserve.service import PredictSettings

RETRIES = 3


def predict(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="An exported file, run here.")] = None,
    url: Annotated[str | None, typer.Option(help="A server, such as http://127.0.0.1:8000.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a statistics group. [default: all of them]")
    ] = None,
    tracking: Annotated[
        bool | None,
        typer.Option(
            "--tracking/--no-tracking", help="Tracked statistics, or each group's own. [default: the file's]"
        ),
    ] = None,
    tracked_weight: Annotated[
        float | None, typer.Option(help="Blend: weight of the tracked statistics, 0 to 1.")
    ] = None,
    prior: Annotated[float | None, typer.Option(help="Blend: rows that the tracked statistics count for.")] = None,
    remainder: Annotated[
        str, typer.Option(help="The last images that fill no group: own, merge, drop, error.")
    ] = "own",
    top_k: Annotated[int | None, typer.Option(help="Show the k most probable classes.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show each image's tracked prediction beside, and where they differ.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option(help="With --url: the model's name, where the server has several.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="With --url: its key. [default: AUGSERVE_API_KEY, which no one sees]")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="With --url: tries after the first, if it is full or away. [default: 3]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Predict images with a file (--model) or a server (--url).

    \b
    Examples:
      augserve predict digit.png --model model.onnx
      augserve predict *.png --url http://127.0.0.1:8000 --batch-size 8 --no-tracking --compare
    """
    if (model is None) == (url is None):
        raise ConfigurationError("expected one of --model FILE and --url URL")
    for flag, value in (("--model-name", model_name), ("--api-key", api_key), ("--retries", retries)):
        if model is not None and value is not None:
            raise ConfigurationError(
                f"{flag} is of a server; leave it out with --model, or name the server by --url"
            )
    blend: dict[str, float] = {
        name: value for name, value in (("tracked_weight", tracked_weight), ("prior", prior)) if value is not None
    }
    if blend and tracking is not None:
        raise ConfigurationError("expected --tracking/--no-tracking or a blend; got both: leave one of them out")
    contents = [_read(image) for image in images]
    if url is not None:
        from augserve.client import Client

        with Client(url, api_key=api_key, retries=RETRIES if retries is None else retries) as client:
            answer = client.predict(
                contents,
                batch_size,
                tracking,
                blend or None,
                remainder=remainder,
                top_k=top_k,
                model=model_name,
                compare=compare,
            )
    else:
        from augserve.service.schemas import parse_settings

        given: dict[str, Any] = {"remainder": remainder, "batch_size": batch_size, "tracking": tracking}
        given |= {"top_k": top_k, "blend": blend or None, "compare": compare or None}
        settings = parse_settings({k: v for k, v in given.items() if v is not None}, strict=True)
        answer = _predict_here(model or Path(), images, contents, settings)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    else:
        show.show_predictions([str(image) for image in images], answer)


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(f"{image}: cannot be read ({error.strerror})") from None


def _predict_here(
    model: Path, images: Sequence[Path], contents: Sequence[bytes], settings: PredictSettings
) -> dict[str, Any]:
    """Predict without a server: what the service does with a request, in this process."""
    import numpy as np

    from augserve.service import Predictor
    from augserve.service.body.images import decode_image

    predictor = Predictor.open(model)
    preprocessing = predictor.manifest.preprocessing
    if preprocessing is None:
        raise ModelFileError(f"{model}: says nothing of preprocessing, so it takes rows, not images")
    rows = []
    for image, content in zip(images, contents, strict=True):
        try:
            rows.append(decode_image(content, preprocessing))
        except AugserveError as error:
            raise InputError(f"{image}: {error}") from None
    return dict(predictor.predict(np.stack(rows), settings))
