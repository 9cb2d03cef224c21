"""How logs look: lines for people, or JSON for machines, with the request id on every line of a request.

The framework's and the server's own messages go through the same handler, to standard error.
"""

import logging
import sys
from typing import Any

import structlog

from eorouter.settings import Settings

_QUIET = (
    "aiosqlite", "alembic", "asyncio", "bokeh", "distributed", "httpcore2", "httpx2", "numba", "rasterio", "tornado",
)  # fmt: skip


def configure(settings: Settings) -> None:
    """Set logging up for this process."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    is_json = settings.log_format == "json"
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if is_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    last = [structlog.processors.format_exc_info] if is_json else []
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        quiet = logging.getLogger(name)
        quiet.setLevel(max(level, logging.WARNING))
        quiet.handlers.clear()  # distributed brings one of its own, which would write past ours
        quiet.propagate = True
    server = logging.getLogger("uvicorn.error")
    server.setLevel(max(level, logging.WARNING))
    server.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not what uvicorn says, as an error, of every websocket that was refused with a status and a body."""
    return record.msg != "ASGI callable returned without completing handshake."
