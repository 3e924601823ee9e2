"""TorchServe's rows and context on one side, the service on the other. In a worker nothing else knows TorchServe.

What TorchServe does, and why this file is as it is: an exception that leaves `handle` fails every request of the batch;
per-item status and headers count only when `handle` returns a list as long as the batch; phrases must be ASCII and
header values text, else the worker dies. A client's `describe` or `explain` header is ignored.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, get_args

import torch

from handlers.contract import (
    ARTIFACT_FOLDER,
    BROWNOUT_MS,
    DOUBTFUL,
    DRAIN_FLAG,
    ENGINE,
    QUARANTINE_FOLDER,
    SAMPLE_FOLDER,
)
from segserve.api import Request, Response
from segserve.artifact import check_example, load_artifact
from segserve.choice import build_engine
from segserve.cores import available_cores
from segserve.doubtful import DoubtfulSettings
from segserve.doubtful_store import DoubtfulStore
from segserve.log import start_log
from segserve.predictor import build_predictor
from segserve.quarantine import Quarantine
from segserve.sample import keep
from segserve.service import Service
from segserve.spans import exporter_from
from segserve.spec import EngineChoice, ServingSpec, Task

END_SECONDS = 0.5
"""From the answers of a worker that has lost its device to its end; TorchServe then starts another."""


class Context(Protocol):
    """The part of `ts.context.Context` that is used."""

    model_name: str
    manifest: Mapping[str, Any]
    system_properties: Mapping[str, Any]

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]: ...
    def set_response_status(self, code: int, phrase: str, idx: int) -> None: ...
    def set_response_content_type(self, idx: int, value: str) -> None: ...
    def set_response_header(self, idx: int, key: str, value: str) -> None: ...


class Adapter:
    """A TorchServe handler for one task; loads the artifact in the archive and answers with it."""

    task: ClassVar[Task]
    service: Service

    def initialize(self, context: Context) -> None:
        """Load the model. The worker becomes ready only if the artifact's worked example comes out as stored."""
        start_log()
        folder = os.environ.get(QUARANTINE_FOLDER)
        quarantine = Quarantine(Path(folder)) if folder else None
        artifact = load_artifact(Path(context.system_properties["model_dir"]) / ARTIFACT_FOLDER)
        if artifact.spec.task != self.task:
            raise ValueError(
                f"expected an artifact for {self.task}, but got one for {artifact.spec.task}: package it again"
            )
        _share_cores(artifact.spec.serving)
        engine = build_engine(artifact, device=_device(context), choice=_engine_asked())
        predictor = build_predictor(artifact.spec, engine)
        check_example(artifact, predictor)
        version = str(context.manifest["model"]["modelVersion"])
        brownout_ms, doubtful = os.environ.get(BROWNOUT_MS), os.environ.get(DOUBTFUL)
        self.service = Service(
            artifact,
            predictor,
            name=context.model_name,
            version=version,
            quarantine=quarantine,
            brownout_seconds=float(brownout_ms) / 1000 if brownout_ms else None,
        )
        self.service.exporter = exporter_from(os.environ)
        if doubtful:
            settings = DoubtfulSettings.model_validate_json(doubtful)
            self.service.doubtful = DoubtfulStore(settings, artifact.spec, self.service.model)

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """One body a row; status, content type and headers of each go to the context."""
        requests = [_request(row, context.get_all_request_header(index)) for index, row in enumerate(rows)]
        responses = self.service.handle(requests, ready=not _draining())
        if SAMPLE_FOLDER in os.environ:
            keep(Path(os.environ[SAMPLE_FOLDER]), requests, responses)
        if self.service.is_lost:
            threading.Timer(END_SECONDS, os._exit, [1]).start()
        for index, response in enumerate(responses):
            _set_head(context, index, response)
        return [response.body for response in responses]


def _request(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """TorchServe mixes the headers of form fields, as mappings, with those of the request, as text."""
    return Request(
        headers={name.lower(): value for name, value in headers.items() if isinstance(value, str)},
        fields={name: _as_bytes(value) for name, value in row.items() if name != "url_path"},
    )


def _as_bytes(value: object) -> bytes:
    """The field as it was sent; TorchServe may have parsed JSON and decoded text on the way."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _set_head(context: Context, index: int, response: Response) -> None:
    context.set_response_status(response.status, HTTPStatus(response.status).phrase, index)
    context.set_response_content_type(index, response.content_type)
    for name, value in response.headers.items():
        context.set_response_header(index, name, value)


def _device(context: Context) -> torch.device:
    gpu = context.system_properties.get("gpu_id")
    return torch.device("cpu") if gpu is None or not torch.cuda.is_available() else torch.device("cuda", int(gpu))


def _share_cores(serving: ServingSpec) -> None:
    """Workers of one model do not fight for the same cores; engines take as many threads as torch has."""
    cores = min(torch.get_num_threads(), available_cores())
    torch.set_num_threads(serving.threads or max(1, cores // serving.workers))


def _engine_asked() -> EngineChoice | None:
    asked = os.environ.get(ENGINE)
    if asked is not None and asked not in get_args(EngineChoice):
        raise ValueError(f"expected {ENGINE} to be one of {', '.join(get_args(EngineChoice))}, but got {asked!r}")
    return cast(EngineChoice | None, asked)


def _draining() -> bool:
    flag = os.environ.get(DRAIN_FLAG)
    return flag is not None and os.path.exists(flag)
