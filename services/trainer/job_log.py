"""What a job's processes print, on its way to the registry: whole lines, in order, without secrets.

How far it got lies beside the file, so that the next attempt on this machine leaves out nothing and sends nothing
twice, though the worker was killed: the registry knows by the position what it has already.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from services.common.logs import redact
from services.trainer.files import write_whole
from services.trainer.tracking.configured import without_secrets

MAX_SENT = 20 * 1024  # bytes; the registry takes 65,536 characters, and *** may be longer than a secret
MAX_BEHIND = 1024 * 1024  # bytes; what is printed faster than it can be sent is left out, the oldest first


class JobLog:
    def __init__(self, path: Path, token: int, end: int, secrets: Mapping[str, str] = os.environ) -> None:
        """token: the attempt's. end: characters that the registry has of the job's log. secrets: an environment."""
        self._path = path
        self._token = token
        self._secrets = secrets
        self._state = path.with_suffix(".reported")
        state = json.loads(self._state.read_text()) if self._state.exists() else {"position": 0, "token": -1}
        self._position = int(state["position"])  # bytes of the file that are with the registry
        ours = state["token"] == token - 1  # the attempt before ran here, so the end that we know is of this file
        self._end = int(state["end"]) if ours else end
        self._read_to = self._position
        self._text = ""
        self._save()

    def part(self) -> tuple[int, str]:
        """Position in the job's log, and what was printed from there on; the same until it was `reported`."""
        if not self._text and self._path.exists():
            self._read()
        return self._end, self._text

    def reported(self) -> None:
        """The part is with the registry."""
        if self._text:
            self._end, self._position, self._text = self._end + len(self._text), self._read_to, ""
            self._save()

    def _read(self) -> None:
        left_out = ""
        with self._path.open("rb") as file:
            size = self._path.stat().st_size
            if size - self._position > MAX_BEHIND:
                file.seek(size - MAX_BEHIND)
                file.readline()
                left_out = f"… {file.tell() - self._position} bytes are left out here …\n"
                self._position = file.tell()
            file.seek(self._position)
            data = file.read(MAX_SENT)
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == MAX_SENT else 0)
        self._read_to = self._position + whole
        self._text = left_out + without_secrets(redact(data[:whole].decode(errors="replace")), self._secrets)

    def _save(self) -> None:
        state = {"position": self._position, "end": self._end, "token": self._token}
        with contextlib.suppress(OSError):  # a full disk: the next attempt may send some lines again
            write_whole(self._state, json.dumps(state))
