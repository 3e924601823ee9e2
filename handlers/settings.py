"""What `segserve serve` can be told."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from segserve.settings import Settings

Port = Annotated[int, Field(ge=1, le=65534)]


class ServeSettings(Settings):
    """Which archives to serve, where to listen, and how long to wait."""

    store: Path = Path("model_store")
    models: tuple[str, ...] = ()
    """File names inside the store; empty means every archive in it."""
    inference_port: Port = 8080
    management_port: Port = 8081
    ops_port: Port = 8082
    host: str = "127.0.0.1"
    """Where inference and ops listen. The management API can stop workers, so it stays on loopback in any case."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """Upper bound for answering what is queued and in flight when the service is told to stop."""
    start_seconds: float = Field(default=300.0, gt=0)
    """How long the models may take to become ready for the first time before the service gives up."""

    @field_validator("host")
    @classmethod
    def _host_fits_torchserve(cls, host: str) -> str:
        if not host or any(character in host for character in ":^/ "):
            raise ValueError(f"expected an IPv4 address or a host name, but got {host!r}: TorchServe takes no other")
        return host

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = (self.inference_port, self.management_port, self.ops_port)
        if len(set(ports)) < len(ports):
            raise ValueError(f"expected three different ports for inference, management and ops, but got {ports}")
        return self

    @property
    def reachable_host(self) -> str:
        """Where this machine itself reaches the inference port: an address to listen on need not be one to call."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host
