"""BentoML: a service with adaptive batching behind one that takes raw bytes."""

import bentoml
from fastapi import FastAPI, Request, Response

from bench.peers.model import BATCH, model_of_environment

app = FastAPI()


@bentoml.service(traffic={"timeout": 60})
class Segmenter:
    """Batches of files to masks."""

    def __init__(self) -> None:
        self.model = model_of_environment()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=60_000)
    def predict(self, files: list[bytes]) -> list[bytes]:
        return self.model(files)


@bentoml.service(traffic={"timeout": 60})
@bentoml.asgi_app(app)
class Front:
    """An image's bytes to its mask."""

    segmenter = bentoml.depends(Segmenter)

    @app.post("/predict")
    async def predict(self, request: Request) -> Response:
        answer = await self.segmenter.to_async.predict([await request.body()])
        return Response(answer[0], media_type="image/png")
