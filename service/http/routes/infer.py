"""POST /v2/models/MODEL/infer: the Open Inference Protocol's question and answer, in JSON or binary tensors.

A request is read whatever its Content-Type: tritonclient sends none. Answers are not compressed.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from typing_extensions import override

from augserve.service.body.parse import INLINE_BYTES, JSON, NPY
from augserve.service.body.rows import Limits
from augserve.service.http.answering import Codec, DirectRoute, Reply, answer
from augserve.service.http.openapi import RESPONSES
from augserve.service.lifecycle import Outcome
from augserve.service.model.predictor import Job, Predictor, check_finite, statistics_used
from augserve.service.v2.openapi import INFER, TAG
from augserve.service.v2.request import InferRequest, parse_infer
from augserve.service.v2.response import encode_response

HEADER_LENGTH = "Inference-Header-Content-Length"

router = APIRouter(tags=[TAG], route_class=DirectRoute)


@router.post(
    "/v2/models/{model}/versions/{version}/infer", response_model=None, responses=RESPONSES, openapi_extra=INFER
)
@router.post("/v2/models/{model}/infer", response_model=None, responses=RESPONSES, openapi_extra=INFER)
async def infer(request: Request, model: str, version: str | None = None) -> Reply:
    """Predict rows, each normalised as the parameters say, in JSON or binary tensors."""
    return await answer(InferCodec(model, version), request)


class InferCodec(Codec):
    """Settings as parameters of the request, and outputs that it names."""

    _request: InferRequest

    @override
    def check(self, request: Request) -> None:
        self._length = request.headers.get(HEADER_LENGTH)

    @override
    def is_quick(self, size: int) -> bool:
        return size <= INLINE_BYTES[JSON if self._length is None else NPY]

    @override
    def parse(self, body: bytes) -> None:
        self._body = [body]  # what it holds, the model's manifest says

    @override
    def prepare(self, predictor: Predictor, limits: Limits, check: Callable[[], None]) -> Job:
        name, version, manifest = predictor.name, predictor.version, predictor.manifest
        self._request = parse_infer(self._body.pop(), self._length, manifest, limits.max_rows, name, version)
        return predictor.prepare(self._request.rows, self._request.settings)

    @override
    def write(self, predictor: Predictor, outcome: Outcome, elapsed_ms: Callable[[], float]) -> Reply:
        check_finite(outcome.logits)
        encoded = encode_response(
            self._request,
            outcome.logits,
            predictor.manifest.classes,
            model=predictor.name,
            version=predictor.version,
            statistics={**statistics_used(outcome.job), "warnings": outcome.job.groups.warnings},
        )
        if encoded.header_length is None:
            return Reply(encoded.body, JSON)
        return Reply(encoded.body, NPY, {HEADER_LENGTH: str(encoded.header_length)})
