"""Triton, by nvidia-pytriton: its dynamic batcher, one Python model."""

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.model import BATCH, DELAY_SECONDS, model_of_environment, port_of_environment

NAME = "segmenter"


def main() -> None:
    """Serve until a signal."""
    model = model_of_environment()

    @batch
    def predict(image: NDArray[np.bytes_]) -> list[NDArray[np.bytes_]]:
        masks = model([row[0] for row in image])
        return [np.array([[mask] for mask in masks], dtype=np.object_)]

    port = port_of_environment()
    config = TritonConfig(http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=NAME,
            infer_func=predict,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="mask", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=BATCH,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(DELAY_SECONDS * 1e6)),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
