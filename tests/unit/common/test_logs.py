import logging

from services.common.logs import RedactingFormatter, redact
from services.registry.keys import new_secret


def test_a_line_and_its_traceback_are_written_without_the_keys_in_them() -> None:
    secret = new_secret()
    try:
        raise RuntimeError(f"cannot read {secret}")
    except RuntimeError as error:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "%s failed: %s", ("GetModel", secret), None)
        record.exc_info = (type(error), error, error.__traceback__)
    line = RedactingFormatter("%(message)s").format(record)
    assert line.startswith("GetModel failed: an_…\nTraceback")
    assert line.endswith("RuntimeError: cannot read an_…")
    assert secret not in line
    assert secret in logging.Formatter("%(message)s").format(record)  # what would be written otherwise


def test_other_text_stays_as_it_is() -> None:
    text = "an_alias job-0643b1f2c4d5e0-9f3a61 sha256:" + "0" * 64
    assert redact(text) == text
