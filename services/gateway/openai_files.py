"""The JSON of OpenAI's files, and the form that uploads one. Source: OpenAI's API reference, Files."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile

from services.gateway.fine_tuning import File
from services.gateway.fine_tuning_service import FINE_TUNE
from services.gateway.generation import InvalidParameter
from services.gateway.openai_completions import Json

ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
MIN_LIFETIME_S, MAX_LIFETIME_S = 3600, 30 * 86_400
_FIELDS = {"file", "purpose", ANCHOR, SECONDS}


@dataclass(frozen=True, slots=True)
class FileForm:
    file: UploadFile
    lifetime_s: int | None

    @classmethod
    def of(cls, form: FormData) -> "FileForm":
        """Raises InvalidParameter."""
        if unknown := next((name for name in form if name not in _FIELDS), None):
            raise InvalidParameter(unknown[:100], f"unrecognized request argument: {unknown[:100]}")
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise InvalidParameter("file", "file is missing; send it as a file of multipart/form-data")
        if purpose != FINE_TUNE:
            shown = f"{purpose!r:.60}" if isinstance(purpose, str) else "missing"
            raise InvalidParameter("purpose", f"purpose is {shown}; only {FINE_TUNE!r} is supported", "invalid_purpose")
        return cls(file, _lifetime_s(form))


def _lifetime_s(form: FormData) -> int | None:
    anchor, seconds = form.get(ANCHOR), form.get(SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidParameter("expires_after", f"expires_after.anchor is {anchor!r:.60}; use 'created_at'")
    is_number = isinstance(seconds, str) and len(seconds) < 10 and seconds.isascii() and seconds.isdecimal()
    if not is_number or not MIN_LIFETIME_S <= int(str(seconds)) <= MAX_LIFETIME_S:
        message = f"expires_after.seconds is {seconds!r:.60}; choose {MIN_LIFETIME_S} to {MAX_LIFETIME_S}"
        raise InvalidParameter("expires_after", message)
    return int(str(seconds))


def file_json(file: File) -> Json:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_s,
        "expires_at": file.expires_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def deleted_json(file_id: str) -> Json:
    return {"id": file_id, "object": "file", "deleted": True}


def list_json(data: Sequence[Json], *, has_more: bool) -> Json:
    """Of jobs and events."""
    return {"object": "list", "data": data, "has_more": has_more}


def named_list_json(data: Sequence[Json], *, has_more: bool) -> Json:
    """Of files and checkpoints."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return list_json(data, has_more=has_more) | {"first_id": first, "last_id": last}
