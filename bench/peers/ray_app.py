"""Ray Serve: one replica with its own batching."""

import signal
import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from bench.peers.model import BATCH, DELAY_SECONDS, model_of_environment, port_of_environment


@serve.deployment(max_ongoing_requests=100)
class Segmenter:
    """An image's bytes to its mask."""

    def __init__(self) -> None:
        self.model = model_of_environment()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=DELAY_SECONDS)
    async def predict(self, files: list[bytes]) -> list[bytes]:
        return self.model(files)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.predict(await request.body()), media_type="image/png")


if __name__ == "__main__":
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port_of_environment()})
    serve.run(Segmenter.bind(), route_prefix="/predict")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()
