"""What `segserve serve` can be told."""

import ipaddress
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from segserve.doubtful import DoubtfulSettings
from segserve.settings import Settings
from segserve.text import read_text

Port = Annotated[int, Field(ge=1, le=65534)]


class GatewaySettings(Settings):
    """Whom the gateway lets in, and how much of each; docs/gateway.md."""

    tokens: Path | None = None
    """A file with a line NAME.SECRET for each client. None: no token is asked for."""
    certificate: Path | None = None
    """PEM, the chain included. With it and `key`, clients speak TLS."""
    key: Path | None = None
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, le=64 * 2**20)
    """TorchServe itself takes 64 MiB at most."""
    requests_per_second: int = Field(default=100, ge=1)
    """Of one client: one token, or one address where there are no tokens."""
    burst: int = Field(default=200, ge=1)
    """How many requests a client may be ahead of that rate."""
    connections: int = Field(default=128, ge=1)
    """Requests of one client at the same time, those that wait included."""
    waiting_batches: int = Field(default=3, ge=0)
    """Batches that may wait for each worker beside the one it computes; more requests are answered 429."""
    brownout_ms: int | None = Field(default=None, ge=1)
    """When a request has waited longer, its batch is answered without test-time augmentation. None: never."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks, such as 10.0.0.0/8, whose X-Forwarded-For names the client."""

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ipaddress.ip_network(network)) for network in networks)

    @model_validator(mode="after")
    def _certificate_has_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected certificate and key, or neither, but got one of them: add the other")
        return self


def read_gateway(file: str) -> GatewaySettings:
    """Settings from a TOML file; none named: the defaults. Paths in it are relative to its folder.

    Raises:
        ValueError: it is not TOML, or has keys or values that are not known.
        OSError: it cannot be read.
    """
    if not file:
        return GatewaySettings()
    return GatewaySettings.model_validate(_read(Path(file), paths=("tokens", "certificate", "key")))


def read_doubtful(path: Path) -> DoubtfulSettings:
    """Likewise, where images are kept that a model was not sure of."""
    return DoubtfulSettings.model_validate(_read(path, paths=("folder",)))


def _read(path: Path, *, paths: Sequence[str]) -> dict[str, Any]:
    try:
        given = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected {path} to be TOML, but it is not: {error}") from None
    return {**given, **{name: path.parent / given[name] for name in paths if isinstance(given.get(name), str)}}


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
    gateway: GatewaySettings | None = None
    """None: TorchServe itself answers at the inference port. Else nginx does, and TorchServe stays on loopback."""
    doubtful: DoubtfulSettings | None = None
    """Where images are kept that a model was not sure of. None: nowhere."""
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

    @model_validator(mode="after")
    def _doubtful_can_be_written(self) -> Self:
        if not self.doubtful:
            return self
        folder, store = self.doubtful.folder.resolve(), self.store.resolve()
        if folder.is_relative_to(store) or store.is_relative_to(folder):
            raise ValueError(
                f"expected a folder for doubtful images outside the model store and not around it, where no worker can "
                f"write, but got {self.doubtful.folder}: choose another"
            )
        return self

    @property
    def reachable_host(self) -> str:
        """Where this machine itself reaches the inference port: an address to listen on need not be one to call."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host
