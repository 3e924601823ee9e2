"""LitServe: its own batching, one worker."""

from collections.abc import Sequence
from typing import Annotated

import litserve
from fastapi import Body, Response

from bench.peers.model import BATCH, DELAY_SECONDS, model_of_environment, port_of_environment


class Segmenter(litserve.LitAPI):
    """An image's bytes to its mask."""

    def setup(self, device: str) -> None:
        self.model = model_of_environment()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        return request

    def batch(self, inputs: Sequence[bytes]) -> list[bytes]:
        return list(inputs)

    def predict(self, batch: list[bytes]) -> list[bytes]:
        return self.model(batch)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = Segmenter(max_batch_size=BATCH, batch_timeout=DELAY_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port_of_environment(), log_level="warning", generate_client_file=False)
