"""One attempt to deliver: a POST that follows no redirect, asks no proxy and reads of the answer its status alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from services.registry.webhooks.addresses import AddressPolicy, ForbiddenAddress

GONE = 410  # the receiver wants no more of it


@dataclass(frozen=True, slots=True)
class Answer:
    status_code: int | None  # None: there was none
    error: str = ""  # why it does not count as delivered

    @property
    def accepted(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


async def post(url: URL, body: bytes, headers: Mapping[str, str], policy: AddressPolicy, timeout_s: float) -> Answer:
    """Whatever goes wrong is in the answer, without the URL, which may have a secret in its path."""
    connector = aiohttp.TCPConnector(
        socket_factory=policy.socket_factory(url), resolver=aiohttp.ThreadedResolver(), force_close=True
    )
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    sent = {"content-type": "application/json", "user-agent": "anthesis-webhooks/1", **headers}
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.post(url, data=body, headers=sent, allow_redirects=False) as response,
        ):
            return _answer(response.status)
    except TimeoutError:
        return Answer(None, f"no answer within {timeout_s:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Answer(None, _why(error))


def _answer(status: int) -> Answer:
    if 300 <= status < 400:
        return Answer(status, "redirects are not followed: change the webhook's URL")
    return Answer(status) if 200 <= status < 300 else Answer(status, f"the receiver answered {status}")


def _why(error: Exception) -> str:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ForbiddenAddress):
        return str(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection to {error.host}:{error.port}: {cause}"[:500]
    return f"the connection failed: {type(error).__name__}"
