"""Log format: readable lines, or JSON lines. Prompts and keys are never logged."""

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger


def configure(level: str, json_lines: bool) -> None:
    """Route the standard library's logging through structlog to stderr."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _escape_control_characters,
    ]
    # The default traceback shows local variables, and with them prompts and keys.
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer() if json_lines else console
    if json_lines:
        shared.append(structlog.processors.format_exc_info)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if level in ("trace", "debug") else level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "urllib3", "matplotlib", "multipart", "python_multipart"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _escape_control_characters(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """No value may start a log line of its own or drive a terminal."""
    message = str(event.get("event", ""))
    event["event"] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    return event
