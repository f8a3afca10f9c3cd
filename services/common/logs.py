"""One line per event on stderr; the supervisor keeps the files."""

import logging
import re

_KEY = re.compile(r"\ban_[A-Za-z0-9_-]{20,}")  # what `services.registry.keys.new_secret` makes


def redact(text: str) -> str:
    """`text` without the API keys in it."""
    return _KEY.sub("an_…", text)


class RedactingFormatter(logging.Formatter):
    """Lines without API keys, whatever message or traceback carried one."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def set_up_logging(service: str) -> logging.Logger:
    """Log to stderr with time, level and the service's name; return the service's logger."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    return logging.getLogger(f"services.{service}")
