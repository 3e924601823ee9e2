"""Asks a running service from Python: `with Client("http://127.0.0.1:8080", model="cells") as client: ...`.

What is asked again, and why the rest is not: docs/client.md.
"""

import base64
import io
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack, get_args
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from segserve.answers import (
    Mask,
    Probabilities,
    Region,
    Segmentation,
    read_coco,
    read_cvat,
    read_hf,
    read_label_studio,
    read_mask,
    read_mixed,
    read_npz,
    read_picture,
    read_segmentation,
)
from segserve.api import Form, LabelsAnswer, Masks, Options, ProblemAnswer, Render
from segserve.clock import Stage
from segserve.forms.part import Part
from segserve.settings import explain
from segserve.spec import Aggregate, Measure, Plan, Split, StoredPrecision
from segserve.text import is_utf8

ImageSource = bytes | Path | NDArray[np.uint8]
"""An image file's bytes, its path, or pixels: (H, W, 3) RGB or (H, W) gray, uint8."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
"""Seconds between attempts where the service does not say how many: they double, from the one to the other."""
TOKEN = "SEGSERVE_TOKEN"
"""Environment variable: the token that is sent where no other is given."""
STAGE = re.compile(rf"(?:^|[ ,])({'|'.join(get_args(Stage))});dur=([0-9]+(?:\.[0-9]+)?)")
"""One of the service's stages in `Server-Timing`, to which proxies add entries of their own, in whatever form."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Asked(TypedDict, total=False):
    """Options for every kind of answer, see `segserve.api.Options`."""

    tta: Plan
    aggregate: Aggregate
    measure: Measure
    classes: Sequence[str]
    objects: bool
    split: Split
    min_area: int
    simplify: float
    name: str
    deadline_ms: int


class AskedInFull(Asked, total=False):
    """All options."""

    format: Form | Sequence[Form]
    render: Render | Sequence[Render]
    masks: Masks
    precision: StoredPrecision
    top_k: int


class ServiceError(Exception):
    """A call that has no answer. Whether it may be sent again: `is_safe_to_repeat`."""

    is_safe_to_repeat: bool
    """Whether it surely was not processed."""
    retry_after: float | None = None
    """Seconds to wait, if the service said so."""


class ProblemError(ServiceError):
    """The service, or what stands in front of it, answered with an error."""

    def __init__(self, problem: ProblemAnswer, *, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.title} ({problem.status}): {problem.detail}")
        self.type = problem.type
        self.title = problem.title
        self.status = problem.status
        self.detail = problem.detail
        self.request_id = problem.request_id
        self.retry_after = retry_after
        self.is_safe_to_repeat = problem.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class ConnectionFailed(ServiceError):
    """No answer came; `is_safe_to_repeat` where the request cannot have arrived."""

    def __init__(self, sentence: str, *, was_sent: bool) -> None:
        super().__init__(sentence)
        self.is_safe_to_repeat = not was_sent


class UnexpectedAnswer(ServiceError):
    """An answer of another kind than was asked for: the model may have another task."""

    is_safe_to_repeat = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as it came."""

    content_type: str
    body: bytes
    model: str
    version: str
    request_id: str
    timings_ms: Mapping[str, float]
    """Of the service's stages."""
    degraded: str
    """What a busy service left out of what was asked, such as `tta`; else empty."""


class Client:
    """A connection to one model of a service; threads may share it.

    Args:
        url: the inference port, such as `http://127.0.0.1:8080`.
        model: its name in the service.
        timeout: seconds for one call, with its retries and the pauses between them.
        retries: most attempts after the first.
        token: NAME.SECRET, for a gateway that asks for one; None: that of the environment variable `SEGSERVE_TOKEN`, if
            there is one.
    """

    def __init__(
        self, url: str, *, model: str, timeout: float = 60.0, retries: int = 4, token: str | None = None
    ) -> None:
        if not _is_address(url):
            raise ValueError(f"expected a URL such as http://127.0.0.1:8080, but got {url!r}")
        if timeout <= 0 or retries < 0:
            raise ValueError(f"expected timeout > 0 and retries >= 0, but got {timeout} and {retries}")
        self.model = model
        self.timeout = timeout
        self.retries = retries
        self._address = f"{url.rstrip('/')}/predictions/{quote(model, safe='')}"
        self._http = httpx.Client(headers=_authorization(os.environ.get(TOKEN) if token is None else token))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, image: ImageSource, *, request_id: str | None = None, **asked: Unpack[AskedInFull]) -> Reply:
        """Send the image; the answer as it came, for `segserve.answers` to decode or for a file.

        Args:
            image: see `ImageSource`.
            request_id: sent as `X-Request-ID`; None: a new one.
            **asked: options. `name` is the path's, where there is one that is text.

        Raises:
            ValueError: an image or option that the service would refuse.
            ProblemError: the service refused, or failed.
            ConnectionFailed: no answer came.
        """
        name = {"name": image.name} if isinstance(image, Path) and is_utf8(image.name) else {}
        body = _body(_encoded(image), _options({**name, **asked}))
        request_id = request_id or uuid.uuid4().hex
        if not (request_id.isascii() and request_id.isprintable()):
            raise ValueError(f"expected a request_id of visible ASCII characters, but got {request_id!r}")
        return _reply(self._insist({**body, "headers": {"X-Request-ID": request_id}}), request_id)

    def segment(self, image: ImageSource, **asked: Unpack[Asked]) -> Mask:
        """Class indices and colours; for arguments and errors see `ask`."""
        return read_mask(self._png(image, "index", asked))

    def picture(
        self, image: ImageSource, *, render: Literal["overlay", "confidence", "uncertainty"], **asked: Unpack[Asked]
    ) -> NDArray[np.uint8]:
        """(H, W, 3) RGB of an overlay, (H, W) of the others: 255 = certain, or most uncertain."""
        return read_picture(self._png(image, render, asked))

    def _png(self, image: ImageSource, render: Render, asked: Asked) -> bytes:
        return _expect("image/png", self.ask(image, format="png", render=render, **asked)).body

    def describe(
        self,
        image: ImageSource,
        *,
        masks: Masks = "rle",
        **asked: Unpack[Asked],
    ) -> Segmentation:
        """The JSON answer of a segmentation model."""
        reply = self.ask(image, format="json", masks=masks, **asked)
        return _parsed(reply, read_segmentation)

    def classify(self, image: ImageSource, *, top_k: int = 5, **asked: Unpack[Asked]) -> LabelsAnswer:
        """The JSON answer of a classification model."""
        return _parsed(self.ask(image, format="json", top_k=top_k, **asked), LabelsAnswer.model_validate_json)

    def regions(
        self, image: ImageSource, *, form: Literal["coco", "cvat", "labelstudio", "hf"], **asked: Unpack[Asked]
    ) -> tuple[Region, ...]:
        """Classes, or objects with `objects=True`, by way of a form; `ask` gives the file to import."""
        return _parsed(self.ask(image, format=form, **asked), REGION_READERS[form])

    def probabilities(
        self, image: ImageSource, *, precision: StoredPrecision = "uint8", **asked: Unpack[Asked]
    ) -> Probabilities:
        """Of every class at every pixel."""
        reply = self.ask(image, format="npz", precision=precision, **asked)
        return read_npz(_expect("application/x-npz", reply).body)

    def parts(self, image: ImageSource, **asked: Unpack[AskedInFull]) -> dict[str, Part]:
        """Several forms from one forward pass, by name: `format=["png", "json"]`, `render=["index", "overlay"]`."""
        question = "were several forms asked for, of a model for segmentation?"
        reply = _expect("multipart/mixed", self.ask(image, **asked), question=question)
        return read_mixed(reply.content_type, reply.body)

    def _insist(self, request: Mapping[str, Any]) -> httpx.Response:
        """Send, and send again while that is safe and there is time."""
        deadline = time.monotonic() + self.timeout
        for attempt in count():
            try:
                return self._send(request, deadline=deadline)
            except ServiceError as error:
                pause = _pause(error, attempt)
                is_in_time = time.monotonic() + pause < deadline
                if not (error.is_safe_to_repeat and attempt < self.retries and is_in_time):
                    raise
            time.sleep(pause)
        raise AssertionError("count() has no end")

    def _send(self, request: Mapping[str, Any], *, deadline: float) -> httpx.Response:
        try:
            response = self._post(request, deadline=deadline)
        except UNSENT as error:
            sentence = f"expected a service at {self._address}, but it cannot be reached ({error}): is it running?"
            raise ConnectionFailed(sentence, was_sent=False) from error
        except httpx.TimeoutException as error:
            sentence = f"expected an answer from {self._address} within {self.timeout:g} s, but none came"
            raise ConnectionFailed(f"{sentence}: raise the timeout, or ask for less", was_sent=True) from error
        except httpx.TransportError as error:
            sentence = f"expected an answer from {self._address}, but the connection broke off ({error})"
            raise ConnectionFailed(f"{sentence}: the service's log may say why", was_sent=True) from error
        except httpx.DecodingError as error:
            sentence = f"expected an answer from {self._address} in the encoding that it names, but got other bytes"
            raise ConnectionFailed(f"{sentence} ({error}): look at the proxies between", was_sent=True) from error
        if not response.is_success:
            raise _problem(response)
        return response

    def _post(self, request: Mapping[str, Any], *, deadline: float) -> httpx.Response:
        """httpx's own timeout begins anew with each byte that comes."""
        seconds = max(deadline - time.monotonic(), 0.001)
        with self._http.stream("POST", self._address, timeout=seconds, **request) as coming:
            chunks = []
            for chunk in coming.iter_raw():
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer is not whole yet", request=coming.request)
        return httpx.Response(
            coming.status_code,
            headers=coming.headers,
            content=b"".join(chunks),
            request=coming.request,
            extensions=coming.extensions,
        )


REGION_READERS: Mapping[str, Callable[[bytes], tuple[Region, ...]]] = {
    "coco": read_coco,
    "cvat": read_cvat,
    "labelstudio": read_label_studio,
    "hf": read_hf,
}

Answer = TypeVar("Answer")


def _expect(media_type: str, reply: Reply, *, question: str = "is the model one for segmentation?") -> Reply:
    if reply.content_type.partition(";")[0] != media_type:
        raise UnexpectedAnswer(
            f"expected {media_type} from {reply.model or 'the service'}, but got {reply.content_type or 'no type'}: "
            + question
        )
    return reply


def _parsed(reply: Reply, read: Callable[[bytes], Answer]) -> Answer:
    try:
        return read(reply.body)
    except ValidationError as error:
        raise UnexpectedAnswer(
            f"expected another answer from {reply.model or 'the service'} ({explain(error)}): "
            "is the model one for segmentation, or for classification?"
        ) from None


def _is_address(url: str) -> bool:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


def _authorization(token: str | None) -> dict[str, str]:
    if not token:
        return {}
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            "expected a token of visible ASCII characters, but it has others: is there a line break in it?"
        )
    return {"Authorization": f"Bearer {token}"}


def _options(asked: Mapping[str, Any]) -> Options:
    try:
        return Options.model_validate(asked)
    except ValidationError as error:
        raise ValueError(explain(error, known_keys=tuple(Options.model_fields))) from None


def _encoded(image: ImageSource) -> bytes:
    match image:
        case bytes():
            return image
        case Path():
            return image.read_bytes()
        case np.ndarray() if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] == (3,)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
            return buffer.getvalue()
        case np.ndarray():
            got = f"an array of shape {image.shape} and type {image.dtype}"
        case _:
            got = type(image).__name__
    raise ValueError(f"expected an image as bytes, Path, or array (H, W, 3) or (H, W) of uint8, but got {got}")


def _body(image: bytes, options: Options) -> dict[str, Any]:
    """A form, which is read fastest; JSON where `classes` are named, since names may hold commas."""
    given = options.model_dump(mode="json", include=options.model_fields_set, exclude_none=True)
    if options.classes:
        return {"json": {"image": base64.b64encode(image).decode(), **given}}
    return {"files": {"image": image}, "data": {name: _as_text(value) for name, value in given.items()}}


def _as_text(value: object) -> str:
    match value:
        case list():
            return ",".join(value)
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _reply(response: httpx.Response, request_id: str) -> Reply:
    headers = response.headers
    return Reply(
        content_type=headers.get("Content-Type", ""),
        body=response.content,
        model=headers.get("X-Segserve-Model", ""),
        version=headers.get("X-Segserve-Version", ""),
        request_id=request_id,
        timings_ms={stage: float(duration) for stage, duration in STAGE.findall(headers.get("Server-Timing", ""))},
        degraded=headers.get("X-Segserve-Degraded", ""),
    )


def _problem(response: httpx.Response) -> ProblemError:
    """Problem details, or, from TorchServe and gateways, what comes nearest to them."""
    retry_after = _seconds(response.headers.get("Retry-After", ""))
    sent_id = response.request.headers["X-Request-ID"]
    try:
        problem = ProblemAnswer.model_validate_json(response.content)
    except ValidationError:
        problem = ProblemAnswer(
            type="about:blank",
            title=response.reason_phrase or "Error",
            status=response.status_code,
            detail=_detail(response),
        )
    return ProblemError(problem.model_copy(update={"request_id": sent_id}), retry_after=retry_after)


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, TypeError, LookupError):
        return response.text[:500] or "no reason was given"


def _seconds(retry_after: str) -> float | None:
    """Of the header, which has seconds or a date (RFC 9110, 10.2.3); None if it has neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return None


def _pause(error: ServiceError, attempt: int) -> float:
    """Seconds before the next attempt: never less than the service asks for, and not the same for all clients."""
    backoff = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
    return backoff if error.retry_after is None else error.retry_after + random.uniform(0.0, FIRST_PAUSE)
