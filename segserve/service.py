"""Turns a batch of raw requests into a batch of raw answers, each item isolated from its neighbours' faults.

Knows HTTP bodies and options but no server: TorchServe's adapter calls `handle`.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from segserve import api, codec, metrics
from segserve.api import Options, Request, Response
from segserve.artifact import Artifact
from segserve.clock import StageClock
from segserve.device import DeviceLost
from segserve.doubtful_store import DoubtfulStore
from segserve.drift import AnswerCounter
from segserve.log import LONGEST_ID
from segserve.memory import is_out_of_memory
from segserve.prediction import Prediction, Query, SegmentationPrediction
from segserve.predictor import Predictor
from segserve.preprocess import needed_size
from segserve.problem import DEADLINE_PASSED, OUT_OF_MEMORY, STOPPING, TITLE, Problem, type_of
from segserve.quarantine import Quarantine
from segserve.render import Asked, render
from segserve.spans import Exporter, RequestSpan, Span
from segserve.tiling import TooLarge
from segserve.trace import Trace, stamp_of, trace_of
from segserve.v2 import Inference, asks_v2, read_inference
from segserve.v2_answer import write_inference

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
LONGEST_QUEUE_SECONDS = 3600
"""A stamp of the gateway that is older is none."""
MAX_ANSWER_BYTES = 60 * 2**20
"""TorchServe ends a worker whose answer exceeds its `max_response_size`, 64 MiB in `handlers/config`."""
MAX_DETAIL = 2000
"""Most characters of a problem's detail: it quotes the client, who may have sent megabytes."""
LOST = Problem("not-ready", "this worker has lost its GPU, and another one takes its place: send the request again")


@dataclass(kw_only=True)
class _Item:
    """One request on its way through the service; it has a response as soon as its outcome is known."""

    request: Request
    arrived: float
    is_late: bool
    """Its batch waited so long that it is to be answered sooner, with less."""
    clock: StageClock = field(default_factory=StageClock)
    asked: Asked | Inference | None = None
    queries: Sequence[Query] = ()
    predictions: Sequence[Prediction] = ()
    """One a query."""
    response: Response | None = None
    problem: str | None = None
    """Its kind, where the response is one."""
    left_out: str | None = None
    """Of what was asked."""
    trace: Trace = field(init=False)

    def __post_init__(self) -> None:
        self.trace = trace_of(self.request.headers)

    @property
    def status(self) -> int:
        """HTTP's; 500 where there is no response, though every item gets one."""
        return 500 if self.response is None else self.response.status

    @property
    def ids(self) -> dict[str, str | None]:
        """By which it is found in logs."""
        request_id = self.request.headers.get("x-request-id", "")[:LONGEST_ID]
        return {"request_id": request_id or None, **self.trace._asdict()}


class Service:
    """Answers batches of requests with one model.

    Args:
        artifact: the model, for its spec and digest.
        predictor: runs it.
        name: of the model, as the server knows it.
        version: likewise.
        pool_size: threads that decode and encode.
        quarantine: refuses images that ended a worker; None: none is refused.
        brownout_seconds: a batch in which a request has waited longer, as the gateway's stamp says, is answered
            without test-time augmentation; None: never.
    """

    def __init__(
        self,
        artifact: Artifact,
        predictor: Predictor,
        *,
        name: str,
        version: str,
        pool_size: int = 4,
        quarantine: Quarantine | None = None,
        brownout_seconds: float | None = None,
    ) -> None:
        self.brownout_seconds = brownout_seconds
        self.quarantine = quarantine
        self.exporter: Exporter | None = None
        """Gets the spans of each request; None: nobody does."""
        self.doubtful: DoubtfulStore | None = None
        """Keeps the images that the model is least sure of; None: nobody does."""
        self.is_lost = False
        """Every request is answered 503 from now on: this process should end, for another to take its place."""
        self.spec = artifact.spec
        self.predictor = predictor
        self.model = api.ModelInfo(name=name, version=version, digest=artifact.digest)
        self._pool = _started_pool(pool_size)
        self._answers = AnswerCounter(self.spec, name=name, version=version)
        engine = predictor.engine
        metrics.DEGRADED.labels(name, "tta")
        metrics.IN_FLIGHT.labels(name).set(0)
        metrics.MODEL_INFO.labels(name, version, artifact.digest, engine.name, str(engine.device)).set(1)

    def handle(self, requests: Sequence[Request], *, ready: bool = True) -> list[Response]:
        """One answer a request, in order; a fault of one item is its own answer, never an exception.

        Args:
            requests: the batch.
            ready: False while the service is being stopped: every request is answered 503.
        """
        arrived = time.perf_counter()
        is_late = self.brownout_seconds is not None and _waited_seconds(requests) > self.brownout_seconds
        items = [_Item(request=request, arrived=arrived, is_late=is_late) for request in requests]
        in_flight = metrics.IN_FLIGHT.labels(self.model.name)
        in_flight.inc(len(items))
        try:
            if not ready or self.is_lost:
                return [self._refuse(item, LOST if ready else STOPPING) for item in items]
            return self._answer(items)
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
                item.asked = self._read(item.request)
                if item.is_late:
                    _leave_out_tta(item)
                item.queries = _queries(item.asked, arrived=item.arrived, max_seconds=self.spec.serving.max_seconds)
        except Problem as problem:
            self._refuse(item, problem)
        except Exception as error:
            self._refuse(item, _as_problem(error, doing="decoding", item=item))

    def _read(self, request: Request) -> Asked | Inference:
        if asks_v2(request):
            return read_inference(request, spec=self.spec, max_answer_bytes=MAX_ANSWER_BYTES)
        data, options = api.parse_request(request)
        api.check_classes(options.classes, self.spec)
        with self.quarantine.decoding(data) if self.quarantine else nullcontext():
            decoded = codec.decode_scaled(data, needed=lambda size: self._needed(size, options))
        asked = Asked(image_HWC=decoded.image_HWC, sent_size=decoded.sent_size, options=options)
        self._check_probabilities(asked)
        return asked

    def _needed(self, size: tuple[int, int], options: Options) -> tuple[int, int]:
        """At which size to decode an image: whole, where somebody is to see it."""
        is_seen = "overlay" in options.render or self.doubtful is not None
        return size if is_seen else needed_size(size, self.spec.preprocess)

    def _check_probabilities(self, asked: Asked) -> None:
        """Refuse an answer that is too large before any work is done for it, where its size is known."""
        if "npz" not in asked.options.format or self.spec.task != "segmentation":
            return
        num_values = self.spec.num_classes * math.prod(asked.size)
        num_bytes = num_values * np.dtype(asked.options.precision).itemsize
        if num_bytes > MAX_ANSWER_BYTES:
            raise Problem(
                "too-large",
                f"expected probabilities of at most {MAX_ANSWER_BYTES} bytes, but {self.spec.num_classes} classes of "
                f"this image are {num_bytes}: ask for format=png with render=confidence, or send a smaller image",
            )

    def _predict(self, items: Sequence[_Item]) -> None:
        queries = [query for item in items for query in item.queries]
        if not queries:
            return
        clock = StageClock()
        try:
            outcomes = iter(self.predictor.attempt(queries, clock=clock))
        except DeviceLost as lost:
            logger.critical("the device is lost", exc_info=lost)
            self.is_lost = True
            for item in items:
                self._refuse(item, LOST)
            return
        for item in items:
            own = [next(outcomes) for _ in item.queries]
            error = next((outcome for outcome in own if isinstance(outcome, Exception)), None)
            if error is not None:
                self._refuse(item, _as_problem(error, doing="predicting", item=item))
                continue
            item.predictions = cast(list[Prediction], own)
            item.clock.include(clock)
        for stage, seconds in clock.seconds.items():
            metrics.STAGE_SECONDS.labels(self.model.name, stage).observe(seconds)

    def _encode(self, item: _Item) -> Response:
        if item.response is not None:
            return item.response
        try:
            content_type, headers, body = self._body(item)
            _check_size(body, smaller=_smaller(item.asked))
        except Problem as problem:
            return self._refuse(item, problem)
        except Exception as error:
            return self._refuse(item, _as_problem(error, doing="encoding", item=item))
        item.response = Response(
            status=200, content_type=content_type, headers={**self._headers(item), **headers}, body=body
        )
        return item.response

    def _body(self, item: _Item) -> tuple[str, Mapping[str, str], bytes]:
        """Content type, headers of its own, and body."""
        match item.asked:
            case Inference() as inference:
                with item.clock("encode"):
                    return write_inference(inference, item.predictions, spec=self.spec, model=self.model)
            case Asked() as asked:
                (prediction,) = item.predictions
                content_type, body = render(prediction, asked, spec=self.spec, model=self.model, clock=item.clock)
                return content_type, _windows(prediction), body
            case None:
                raise AssertionError("an item without a response has been read")

    def _refuse(self, item: _Item, problem: Problem) -> Response:
        metrics.REJECTED.labels(self.model.name, problem.kind).inc()
        item.problem = problem.kind
        answer = api.ProblemAnswer(
            type=type_of(problem.kind),
            title=TITLE[problem.kind],
            status=problem.status,
            detail=_sendable(problem.detail),
            request_id=_sendable(item.request.headers.get("x-request-id", "")) or None,
            error=_sendable(problem.detail) if asks_v2(item.request) else None,
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
        if item.left_out:
            headers["X-Segserve-Degraded"] = item.left_out
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
            if item.left_out:
                metrics.DEGRADED.labels(self.model.name, item.left_out).inc()
            for stage in item.clock.seconds.keys() & {"decode", "encode"}:
                metrics.STAGE_SECONDS.labels(self.model.name, stage).observe(item.clock.seconds[stage])
            for query in item.queries:
                megapixels = math.prod(query.size) / 1e6
                metrics.IMAGE_MEGAPIXELS.labels(self.model.name).observe(megapixels)
            if _outcome(item) == "ok":
                self._record_answers(item)
            self._log(item, seconds=now - item.arrived, batch=len(items))
            if self.exporter is not None:
                self.exporter.add(self._span(item, now=now, batch=len(items)))

    def _record_answers(self, item: _Item) -> None:
        for query, prediction in zip(item.queries, item.predictions, strict=True):
            self._answers.count(prediction)
            if self.doubtful is not None:
                self.doubtful.offer(query, prediction)

    def _span(self, item: _Item, *, now: float, batch: int) -> RequestSpan:
        epoch = time.time() - time.perf_counter()
        arrived = epoch + item.arrived
        queue = list(_queue(item, arrived=arrived))
        stages = [Span(stage, epoch + start, epoch + end) for stage, (start, end) in item.clock.spans.items()]
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "http.response.status_code": item.status,
            "segserve.model": self.model.name,
            "segserve.version": self.model.version,
            "segserve.batch": batch,
        }
        if item.problem is not None:
            attributes["error.type"] = item.problem
        return RequestSpan(
            trace=item.trace,
            whole=Span(f"predict {self.model.name}", queue[0].start if queue else arrived, epoch + now),
            parts=[*queue, *stages],
            attributes=attributes,
            failed=item.status >= 500,
        )

    def _log(self, item: _Item, *, seconds: float, batch: int) -> None:
        sizes = [f"{query.size[1]}x{query.size[0]}" for query in item.queries]
        fields = {
            **item.ids,
            "model": self.model.name,
            "version": self.model.version,
            "status": item.status,
            "problem": item.problem,
            "left_out": item.left_out,
            "bytes": len(item.response.body) if item.response else 0,
            "images": sizes,
            "batch": batch,
            "seconds": round(seconds, 4),
            "stages_ms": item.clock.milliseconds(),
        }
        logger.info("request", extra={"fields": fields})


def _waited_seconds(requests: Sequence[Request]) -> float:
    """Of the one that has waited longest since the gateway handed it on; 0 where there is no gateway that says so."""
    stamps = (stamp_of(request.headers) for request in requests)
    return max((time.time() - stamp for stamp in stamps if stamp is not None), default=0.0)


def _queue(item: _Item, *, arrived: float) -> Iterator[Span]:
    """From the gateway to the worker, where the gateway says when that began; `arrived` in seconds since the epoch."""
    stamp = stamp_of(item.request.headers)
    if stamp is not None and arrived - LONGEST_QUEUE_SECONDS < stamp < arrived:
        yield Span("queue", stamp, arrived)


def _leave_out_tta(item: _Item) -> None:
    if item.asked is not None and item.asked.options.tta != "none":
        item.asked = replace(item.asked, options=item.asked.options.model_copy(update={"tta": "none"}))
        item.left_out = "tta"


def _started_pool(size: int) -> ThreadPoolExecutor:
    """All its threads run: one started later, when memory is short, would fail a whole batch."""
    pool = ThreadPoolExecutor(size, thread_name_prefix="segserve-codec")
    all_there = threading.Barrier(size)
    list(pool.map(lambda _: all_there.wait(), range(size)))
    return pool


def _queries(asked: Asked | Inference, *, arrived: float, max_seconds: int) -> Sequence[Query]:
    options = asked.options
    own_seconds = max_seconds if options.deadline_ms is None else options.deadline_ms / 1000
    deadline = arrived + min(max_seconds, own_seconds)
    if isinstance(asked, Inference):
        return asked.queries(deadline=deadline)
    shows_map = "uncertainty" in options.render and (not options.format or "png" in options.format)
    query = Query(
        image_HWC=asked.image_HWC,
        sent_size=asked.sent_size,
        tta=options.tta,
        aggregate=options.aggregate,
        maps=(options.measure,) if shows_map else (),
        probabilities=options.precision if "npz" in options.format else None,
        deadline=deadline,
    )
    return (query,)


def _windows(prediction: Prediction) -> Mapping[str, str]:
    if isinstance(prediction, SegmentationPrediction):
        return {"X-Segserve-Windows": str(prediction.windows)}
    return {}


def _sendable(text: str) -> str:
    """The text, cut short and free of lone surrogates, which JSON can smuggle in but UTF-8 cannot carry out."""
    return text[:MAX_DETAIL].encode("utf-8", "backslashreplace").decode("utf-8")


def _outcome(item: _Item) -> str:
    return "ok" if item.status < 400 else "rejected" if item.status < 500 else "failed"


def _smaller(asked: Asked | Inference | None) -> str:
    """What to ask for where an answer is too large."""
    if isinstance(asked, Inference):
        return "ask for fewer outputs, as binary data, or send fewer images"
    return "ask for format=png, or masks=none, or send a smaller image"


def _check_size(body: bytes, *, smaller: str) -> None:
    if len(body) > MAX_ANSWER_BYTES:
        raise Problem(
            "too-large",
            f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, but it has {len(body)}: {smaller}",
        )


def _as_problem(error: Exception, *, doing: str, item: _Item) -> Problem:
    if isinstance(error, TimeoutError):
        return DEADLINE_PASSED
    if isinstance(error, TooLarge):
        return Problem("too-large", str(error))
    if is_out_of_memory(error):
        logger.warning("out of memory while %s one image", doing, extra={"fields": item.ids})
        return OUT_OF_MEMORY
    logger.error("%s failed", doing, exc_info=error, extra={"fields": item.ids})
    return Problem("internal", f"{doing} this image failed: the server's log says why")
