"""Several forms in one answer: `multipart/mixed` (RFC 2046, section 5.1)."""

import secrets
from collections.abc import Sequence

from segserve.forms.part import Part


def mix(parts: Sequence[Part]) -> tuple[str, bytes]:
    """Content type and body of several parts, in their order."""
    boundary = _boundary([part.body for part in parts])
    delimiter = f"--{boundary}".encode()
    chunks = [chunk for part in parts for chunk in (delimiter, b"\r\n", _head(part), part.body, b"\r\n")]
    return f'multipart/mixed; boundary="{boundary}"', b"".join([*chunks, delimiter, b"--\r\n"])


def _head(part: Part) -> bytes:
    return (
        f"Content-Type: {part.content_type}\r\n"
        f'Content-Disposition: attachment; name="{part.name}"; filename="{part.filename}"\r\n'
        f"Content-Length: {len(part.body)}\r\n\r\n"
    ).encode()


def _boundary(bodies: Sequence[bytes]) -> str:
    """Text that is in none of the bodies."""
    while True:
        boundary = secrets.token_hex(16)
        if not any(boundary.encode() in body for body in bodies):
            return boundary
