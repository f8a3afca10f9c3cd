"""What every page has: title, style, and a readable answer when the platform does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st
from anthesis import AnthesisError
from anthesis.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)

from ui import markup
from ui.platform import connect

ASSETS = Path(__file__).parent / "assets"
VIEWS = Path(__file__).parent / "views"  # not "pages": Streamlit would list such a folder itself


@contextmanager
def page(title: str, subtitle: str) -> Iterator[None]:
    """A page's frame. A failed call inside becomes a message that names the service and the remedy."""
    st.html(ASSETS / "style.css")
    st.html(markup.heading(title, subtitle))
    try:
        yield
    except AnthesisError as error:
        show_error(error)
        st.stop()


def show_error(error: AnthesisError) -> None:
    """Say what failed, in the server's words, and what helps."""
    if isinstance(error, UnavailableError | DeadlineExceededError):
        _unreachable(error)
    elif isinstance(error, UnauthenticatedError):
        connect.clear()  # a platform set up anew has another key
        st.error("**The platform did not accept the API key.** Run `make up`, then reload this page.", icon="🔑")
        st.code(str(error), language=None, wrap_lines=True)
    elif isinstance(error, PermissionDeniedError):
        st.error("**This key may not do that.** Use an admin key (`ANTHESIS_API_KEY`).", icon="🔑")
        st.code(str(error), language=None, wrap_lines=True)
    else:
        title = "Not accepted" if isinstance(error, InvalidArgumentError) else "That did not work"
        st.error(f"**{title}.**", icon="⚠️")
        lines = str(error).count("\n") + 1  # a dataset's bad rows may be hundreds
        st.code(str(error), language=None, wrap_lines=True, height=320 if lines > 12 else "content")


def _unreachable(error: AnthesisError) -> None:
    settings = connect().settings
    down = [name for name, state in connect().client.health().items() if state != "SERVING"]
    ours = [name for name in ("registry", "gateway") if name in down]
    addresses = {"registry": settings.registry_address, "gateway": settings.gateway_address}
    if ours:
        who = " and ".join(f"the {name} at `{addresses[name]}`" for name in ours)
        st.error(f"**Cannot reach {who}.** Start the platform with `make up`, then reload this page.", icon="🔌")
    else:
        st.error("**The platform is up, but nothing could answer this.** Try again in a moment.", icon="⏳")
    st.code(str(error), language=None, wrap_lines=True)
