"""Multipart bodies (RFC 7578), for servers that hand them over as they were sent."""

import math

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from segserve.problem import Problem

MAX_PARTS = 256
"""Most fields and files of a form; there are fewer options than that."""


def read_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The form's fields and files by name; of several with one name, the last.

    Args:
        content_type: the header, which names the boundary.
        body: the whole body.

    Raises:
        Problem: `bad-body`, the body is no such form, or has more than `MAX_PARTS` fields.
    """
    parts: list[tuple[str, bytes]] = []

    def take(name: bytes | None, value: bytes) -> None:
        if len(parts) == MAX_PARTS:
            raise Problem("bad-body", f"expected at most {MAX_PARTS} fields in the form, but got more: send fewer")
        parts.append(((name or b"").decode("utf-8", "replace"), value))

    def on_field(field: Field) -> None:
        take(field.field_name, field.value or b"")

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        take(file.field_name, file.file_object.read())

    in_memory = {"MAX_MEMORY_FILE_SIZE": math.inf}
    try:
        parser = create_form_parser({"Content-Type": content_type.encode()}, on_field, on_file, config=in_memory)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Problem(
            "bad-body",
            f"expected multipart/form-data, but it cannot be parsed ({error}): let your client set the Content-Type, "
            "and send each part as it is, without Content-Transfer-Encoding",
        ) from None
    return dict(parts)
