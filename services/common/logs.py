"""One line per event on stderr; the supervisor keeps the files."""

import logging


def set_up_logging(service: str) -> logging.Logger:
    """Log to stderr with time, level and the service's name; return the service's logger."""
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s", force=True
    )
    return logging.getLogger(f"services.{service}")
