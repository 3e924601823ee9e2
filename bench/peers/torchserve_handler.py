"""The handler of `torchserve_app`: TorchServe wants exactly one class in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.peers.model import model_of_environment


class Handler:
    """Images' bytes to their masks."""

    def initialize(self, context: Any) -> None:
        self.model = model_of_environment()

    def handle(self, rows: Sequence[Mapping[str, bytes]], context: Any) -> list[bytes]:
        """One answer a row."""
        return self.model([bytes(row["body"]) for row in rows])
