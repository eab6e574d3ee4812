"""From a file to the forms that serve it, each seen to answer before a request meets it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

from augserve.errors import ConfigurationError, ModelFileError
from augserve.manifest import Manifest
from augserve.runtime import DEFAULT_PROVIDERS, open_session, open_tracked_session, read_manifest
from augserve.service.model import self_check
from augserve.service.model.graph import Form

logger = logging.getLogger(__name__)


class Opening(NamedTuple):
    """How sessions are opened.

    providers: execution providers in order of preference; None means the CPU. threads: inside one operator, 0 means
    one a core. threads_beside: the same in one of several runs at a time; 0 means no difference.
    """

    providers: Sequence[str] | None = None
    threads: int = 0
    threads_beside: int = 0


def open_forms(
    path: str | Path, name: str, how: Opening, *, fold: bool = True, fall_back: bool = False
) -> tuple[Form, Form | None, Manifest]:
    """Open a file and see that it answers and keeps groups apart.

    Args:
        path: the .onnx file.
        name: the model's name.
        how: what every session is opened with.
        fold: whether requests with tracked statistics get a graph of their own, with the norms folded away and
            written for this provider.
        fall_back: whether a provider that does not start may leave the model to the next one.

    Returns:
        The adaptive form; the folded one, None where there is none; the file's manifest.

    Raises:
        ModelFileError: a file that cannot be opened, or that fails its self-check.
        ConfigurationError: a provider that this ONNX Runtime does not have, or that does not start.

    Example:
        >>> adaptive, tracked, manifest = open_forms("model.onnx", "model", Opening())  # doctest: +SKIP
    """
    session = open_session(path, providers=how.providers, threads=how.threads)
    if not fall_back:
        _check_provider(session, how.providers)
    manifest = read_manifest(session, path)
    beside = None
    if how.threads_beside:
        beside = open_session(path, providers=how.providers, threads=how.threads_beside)
    adaptive = Form(session, name, merges=manifest.mode != "batch", beside=beside)
    try:
        self_check.check_answers(adaptive, manifest)
        if manifest.mode == "adaptive":
            self_check.check_isolation(adaptive, manifest)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    tracked = _folded(path, name, how) if fold and manifest.mode != "batch" else None
    if tracked is not None and not self_check.agree(tracked, adaptive, manifest):
        logger.warning("%s: its folded form answers otherwise; tracked requests run on the whole graph", path)
        tracked = None
    if tracked is not None and manifest.mode == "tracked":
        adaptive, tracked = tracked, None
    for form in (adaptive, tracked):
        if form is not None and form.beside is not None and not self_check.same_bits(form, manifest):
            logger.warning("%s: its numbers depend on how many threads a run takes; each takes all", path)
            form.beside = None
    return adaptive, tracked, manifest


def _folded(path: str | Path, name: str, how: Opening) -> Form | None:
    """Open the folded form; None where the file has none."""
    sessions = [
        open_tracked_session(path, providers=how.providers, threads=threads)
        for threads in ((how.threads, how.threads_beside) if how.threads_beside else (how.threads,))
    ]
    session, beside = sessions[0], sessions[-1] if how.threads_beside else None
    return None if session is None else Form(session, name, beside=beside)


def _check_provider(session: ort.InferenceSession, providers: Sequence[str] | None) -> None:
    """Refuse a session that another provider runs than the first one asked for."""
    wanted, came = (providers or DEFAULT_PROVIDERS)[0], session.get_providers()[0]
    if wanted != came:
        raise ConfigurationError(
            f"expected {wanted}; it did not start, and {came} would run the model: see to its driver and "
            f"libraries, choose {came}, or allow it with provider_fallback"
        )
