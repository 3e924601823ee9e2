"""The workers' log: one JSON object a line, one line a request, with what it takes to find it again and no image.

`extra={"fields": {...}}` of a logging call adds keys.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

ROOT = "segserve"
LONGEST_ID = 128
"""Characters kept of a request id, which the client chooses."""


class JsonFormatter(logging.Formatter):
    """Time (UTC), level, logger, message, the call's fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def start_log(stream: TextIO | None = None) -> None:
    """Write what this project's modules log to a stream, standard output if none is given, and nowhere else."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
