"""The seal of an exported file: a digest of all its bytes, so that what was proved of them is read or nothing.

    content_sha256 = SHA-256 of the file, with 64 zeros where the digest stands

It stands in the manifest, which lies in the file as text. A flipped bit, a cut, a manifest that was edited and a
tensor that was exchanged all break it.
"""

from __future__ import annotations

import hashlib
import re

from augserve.errors import ExportError, ModelFileError
from augserve.manifest import FORMAT_VERSION, UNSEALED

_SEAL = re.compile(rb'"content_sha256": ?"([0-9a-f]{64})"')
_VERSION = re.compile(rb'"format_version": ?(\d{1,9})\b')


def seal(content: bytes) -> bytes:
    """Return a file with its digest in the manifest.

    Args:
        content: the file, whose manifest has the digest UNSEALED.

    Raises:
        ExportError: there is no place for the digest, or more than one.
    """
    found = _SEAL.findall(content)
    if len(found) != 1:
        raise ExportError(f"expected one manifest with a place for the digest; got {len(found)}")
    if found[0] != UNSEALED.encode():
        raise ExportError("expected a manifest without a digest; got one that is sealed")
    digest = hashlib.sha256(content).hexdigest()
    return _SEAL.sub(lambda match: match.group(0).replace(UNSEALED.encode(), digest.encode()), content)


def check_seal(content: bytes, path: object) -> None:
    """Refuse a file that is not as it was written.

    Args:
        content: the file.
        path: only named in errors.

    Raises:
        ModelFileError: there is no manifest with a seal, or the seal is broken.
    """
    found = list(_SEAL.finditer(content))
    if len(found) == 1 and found[0].group(1) == _digest(content, *found[0].span(1)):
        return
    newer = [int(version) for version in _VERSION.findall(content) if int(version) > FORMAT_VERSION]
    if newer:  # whose digest may be another
        raise ModelFileError(
            f"{path}: manifest format {newer[0]} is newer than {FORMAT_VERSION}, the newest that is read here (or "
            "the file is damaged); upgrade augserve"
        )
    if not found:
        raise ModelFileError(
            f"{path}: no whole augserve manifest in it: not an ONNX file, one without an augserve manifest, or one "
            "that was cut short; `augserve export` writes such files"
        )
    raise ModelFileError(
        f"{path}: damaged, or changed since it was exported (its bytes are not those that its digest is of); "
        "export the file again"
    )


def _digest(content: bytes, begin: int, end: int) -> bytes:
    """Return the digest of a file whose seal stands from begin to end."""
    digest = hashlib.sha256()
    view = memoryview(content)
    for part in (view[:begin], UNSEALED.encode(), view[end:]):
        digest.update(part)
    return digest.hexdigest().encode()
