"""Reading a URL that a store has signed. Blocking."""

import http.client
import urllib.request
from collections.abc import Iterator

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 10.0  # of silence; a store that clients cannot reach must not cost more
FAILURES = (OSError, http.client.HTTPException)  # what `read_url` raises: the network's, HTTP's, the answer's


def read_url(url: str, offset: int) -> Iterator[bytes]:
    """What lies there, from byte `offset` on. Raises one of FAILURES, which never show the URL: it is a secret."""
    if not url.startswith(("https://", "http://")):
        raise OSError("the store's URL is neither http nor https")
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        if offset and answer.status != http.client.PARTIAL_CONTENT:
            raise OSError(f"the store answers {answer.status} where a part was asked for")
        while chunk := answer.read(CHUNK_BYTES):
            yield chunk
