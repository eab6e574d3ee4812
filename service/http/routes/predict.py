"""POST /predict: JSON, a form or an array in, JSON out."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from typing_extensions import override

from augserve.service.body.parse import INLINE_BYTES, JSON, ParsedBody, header_of, media_type_of, parse
from augserve.service.body.rows import Limits
from augserve.service.http.answering import Codec, DirectRoute, Reply, answer
from augserve.service.http.openapi import PREDICT_DESCRIPTION, RESPONSES
from augserve.service.lifecycle import Outcome
from augserve.service.model.predictor import Job, Predictor
from augserve.service.schemas import Answer, Timing

router = APIRouter(route_class=DirectRoute)


@router.post("/predict", response_model=Answer, responses=RESPONSES, description=PREDICT_DESCRIPTION)
async def predict(request: Request) -> Reply:
    """Answer one request; the docs show the body's fields."""
    return await answer(PredictCodec(), request)


class PredictCodec(Codec):
    """Settings in the body, beside an array in the query."""

    _parsed: ParsedBody

    @override
    def check(self, request: Request) -> None:
        self._content_type = header_of(request, b"content-type")
        self._media_type = media_type_of(self._content_type)
        self._query = request.query_params.multi_items() if request.scope["query_string"] else []

    @override
    def is_quick(self, size: int) -> bool:
        return size <= INLINE_BYTES.get(self._media_type, 0)

    @override
    def parse(self, body: bytes) -> None:
        self._parsed = parse(body, self._content_type, self._query)
        self.model, self.decodes_images = self._parsed.settings.model, self._parsed.images

    @override
    def prepare(self, predictor: Predictor, limits: Limits, check: Callable[[], None]) -> Job:
        settings = self._parsed.settings
        statistics = predictor.statistics(settings)  # before images are decoded: the model may not serve them
        return predictor.prepare(self._parsed.make_rows(predictor.manifest, limits, check), settings, statistics)

    @override
    def write(self, predictor: Predictor, outcome: Outcome, elapsed_ms: Callable[[], float]) -> Reply:
        timing = Timing(queue=1e3 * outcome.queue_s, run=1e3 * outcome.run_s, total=0.0)
        content = predictor.answer(outcome.job, outcome.logits, timing, outcome.tracked)
        timing["total"] = elapsed_ms()
        return Reply(orjson.dumps(content), JSON)
