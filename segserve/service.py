"""Turns a batch of raw requests into a batch of raw answers, each item isolated from its neighbours' faults.

Knows HTTP bodies and options but no server: TorchServe's adapter, the offline command and the tests call `handle`.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from segserve import api, codec, metrics
from segserve.api import Request, Response
from segserve.artifact import Artifact
from segserve.clock import StageClock
from segserve.predictor import ClassificationPrediction, Prediction, Predictor, Query, SegmentationPrediction
from segserve.problem import TITLE, Problem
from segserve.render import Asked, class_pixels, render

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
MAX_ANSWER_BYTES = 60 * 2**20
"""TorchServe ends a worker whose answer exceeds its `max_response_size`, 64 MiB in `handlers/config`."""
MAX_DETAIL = 2000
"""Most characters of a problem's detail: it quotes the client, who may have sent megabytes."""
STOPPING = Problem("not-ready", "this service is being stopped: send the request again, to another replica")


@dataclass(kw_only=True)
class _Item:
    """One request on its way through the service; it has a response as soon as its outcome is known."""

    request: Request
    arrived: float
    clock: StageClock = field(default_factory=StageClock)
    asked: Asked | None = None
    prediction: Prediction | None = None
    response: Response | None = None


class Service:
    """Answers batches of requests with one model.

    Args:
        artifact: the model, for its spec and digest.
        predictor: runs it.
        name: of the model, as the server knows it.
        version: likewise.
        pool_size: threads that decode and encode.
    """

    def __init__(
        self, artifact: Artifact, predictor: Predictor, *, name: str, version: str, pool_size: int = 4
    ) -> None:
        self.spec = artifact.spec
        self.predictor = predictor
        self.model = api.ModelInfo(name=name, version=version, digest=artifact.digest)
        self._pool = ThreadPoolExecutor(pool_size, thread_name_prefix="segserve-codec")
        engine = predictor.engine
        metrics.MODEL_INFO.labels(name, version, artifact.digest, engine.name, str(engine.device)).set(1)

    def handle(self, requests: Sequence[Request], *, ready: bool = True) -> list[Response]:
        """One answer a request, in order; a fault of one item is its own answer, never an exception.

        Args:
            requests: the batch.
            ready: False while the service is being stopped: every request is answered 503.
        """
        arrived = time.perf_counter()
        items = [_Item(request=request, arrived=arrived) for request in requests]
        in_flight = metrics.IN_FLIGHT.labels(self.model.name)
        in_flight.inc(len(items))
        try:
            return self._answer(items) if ready else [self._refuse(item, STOPPING) for item in items]
        finally:
            in_flight.dec(len(items))
            self._record(items)

    def _answer(self, items: Sequence[_Item]) -> list[Response]:
        list(self._pool.map(self._decode, items))
        self._predict([item for item in items if item.response is None])
        return list(self._pool.map(self._encode, items))

    def _decode(self, item: _Item) -> None:
        try:
            with item.clock("decode"):
                data, options = api.parse_request(item.request)
                self._check_classes(options.classes)
                item.asked = Asked(image_HWC=codec.decode_image(data), options=options)
            _check_deadline(item, options.deadline_ms)
        except Problem as problem:
            self._refuse(item, problem)
        except Exception as error:
            self._refuse(item, _as_problem(error, doing="decoding"))

    def _check_classes(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.spec.class_names]
        if unknown:
            known = ", ".join(self.spec.class_names)
            raise Problem("bad-option", f"expected 'classes' to be among {known}, but got {', '.join(unknown)}")

    def _predict(self, items: Sequence[_Item]) -> None:
        """Predict all at once; if that fails, one by one, so that only an item that fails alone has a problem."""
        if not items:
            return
        clock = StageClock()
        try:
            predictions = list[Prediction](self.predictor.predict([_query(item) for item in items], clock=clock))
        except Exception as error:
            if len(items) == 1:
                self._refuse(items[0], _as_problem(error, doing="predicting"))
                return
            logger.warning("a batch of %d failed and is tried one by one", len(items), exc_info=error)
            for item in items:
                self._predict([item])
            return
        for item, prediction in zip(items, predictions, strict=True):
            item.prediction = prediction
            item.clock.seconds.update(clock.seconds)
        for stage, seconds in clock.seconds.items():
            metrics.STAGE_SECONDS.labels(self.model.name, stage).observe(seconds)

    def _encode(self, item: _Item) -> Response:
        if item.response is not None:
            return item.response
        try:
            assert item.prediction is not None and item.asked is not None
            content_type, body = render(item.prediction, item.asked, spec=self.spec, model=self.model, clock=item.clock)
            _check_size(body)
        except Problem as problem:
            return self._refuse(item, problem)
        except Exception as error:
            return self._refuse(item, _as_problem(error, doing="encoding"))
        item.response = Response(status=200, content_type=content_type, headers=self._headers(item), body=body)
        return item.response

    def _refuse(self, item: _Item, problem: Problem) -> Response:
        metrics.REJECTED.labels(self.model.name, problem.kind).inc()
        answer = api.ProblemAnswer(
            type=f"urn:segserve:problem:{problem.kind}",
            title=TITLE[problem.kind],
            status=problem.status,
            detail=_sendable(problem.detail),
            request_id=_sendable(item.request.headers.get("x-request-id", "")) or None,
        )
        headers = self._headers(item)
        if problem.status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        body = answer.model_dump_json(exclude_none=True).encode()
        item.response = Response(
            status=problem.status, content_type="application/problem+json", headers=headers, body=body
        )
        return item.response

    def _headers(self, item: _Item) -> dict[str, str]:
        headers = {"X-Segserve-Model": self.model.name, "X-Segserve-Version": self.model.version}
        if item.clock.seconds:
            timings = item.clock.milliseconds().items()
            headers["Server-Timing"] = ", ".join(f"{stage};dur={duration}" for stage, duration in timings)
        request_id = item.request.headers.get("x-request-id", "")
        if request_id and request_id.isascii() and request_id.isprintable():
            headers["X-Segserve-Request-Id"] = request_id
        return headers

    def _record(self, items: Sequence[_Item]) -> None:
        metrics.BATCH_IMAGES.labels(self.model.name).observe(len(items))
        now = time.perf_counter()
        for item in items:
            metrics.REQUESTS.labels(self.model.name, _outcome(item)).inc()
            metrics.REQUEST_SECONDS.labels(self.model.name).observe(now - item.arrived)
            for stage in item.clock.seconds.keys() & {"decode", "encode"}:
                metrics.STAGE_SECONDS.labels(self.model.name, stage).observe(item.clock.seconds[stage])
            if item.asked is not None:
                megapixels = item.asked.image_HWC[..., 0].size / 1e6
                metrics.IMAGE_MEGAPIXELS.labels(self.model.name).observe(megapixels)
            self._record_prediction(item.prediction)

    def _record_prediction(self, prediction: Prediction | None) -> None:
        match prediction:
            case SegmentationPrediction():
                metrics.CONFIDENCE.labels(self.model.name).observe(float(prediction.confidence_HW.mean()) / 255)
                pixels_K = class_pixels(prediction, self.spec.num_classes)
                for entry in self.spec.classes:
                    metrics.CLASS_PIXELS.labels(self.model.name, entry.name).inc(int(pixels_K[entry.id]))
            case ClassificationPrediction():
                metrics.CONFIDENCE.labels(self.model.name).observe(float(prediction.probs_K.max()))


def _query(item: _Item) -> Query:
    assert item.asked is not None
    options = item.asked.options
    return Query(
        image_HWC=item.asked.image_HWC,
        tta=options.tta,
        aggregate=options.aggregate,
        uncertainty_map=options.render == "uncertainty",
    )


def _sendable(text: str) -> str:
    """The text, cut short and free of lone surrogates, which JSON can smuggle in but UTF-8 cannot carry out."""
    return text[:MAX_DETAIL].encode("utf-8", "backslashreplace").decode("utf-8")


def _outcome(item: _Item) -> str:
    status = item.response.status if item.response else 500
    return "ok" if status < 400 else "rejected" if status < 500 else "failed"


def _check_deadline(item: _Item, deadline_ms: int | None) -> None:
    waited_ms = (time.perf_counter() - item.arrived) * 1000
    if deadline_ms is not None and waited_ms > deadline_ms:
        raise Problem(
            "deadline-passed", f"expected to start within {deadline_ms} ms, but {waited_ms:.0f} ms had passed"
        )


def _check_size(body: bytes) -> None:
    if len(body) > MAX_ANSWER_BYTES:
        raise Problem(
            "too-large",
            f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, but it has {len(body)}: "
            "ask for render=index or masks=none, or send a smaller image",
        )


def _as_problem(error: Exception, *, doing: str) -> Problem:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        logger.warning("out of memory while %s one image", doing)
        return Problem("out-of-memory", "expected this image to fit in memory, but it did not: send a smaller one")
    logger.error("%s failed", doing, exc_info=error)
    return Problem("internal", f"{doing} this image failed: the server's log says why")
