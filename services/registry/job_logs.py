"""What jobs' processes print, as far as it is kept: the last 4 Mi characters or so of each job.

A position is the number of characters before it, from the job's first attempt on, so it means the same for ever. The
worker says from which position on it sends; what is there already, because an answer was lost, is left out.
"""

import sys
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import InvalidArgument
from services.registry.database import Database
from services.registry.job_events import read_job
from services.registry.tables import Job, JobLogPart

MAX_SENT = 64 * 1024  # characters in one call
SMALL_PART = 16 * 1024  # a part that is shorter grows
MAX_PART = SMALL_PART + MAX_SENT
MAX_KEPT = 4 * 1024 * 1024
MAX_LINES = 1000
PARTS_A_PAGE = 8


@dataclass(frozen=True, slots=True)
class LogPage:
    lines: list[str]
    end: int  # position after them
    more: bool  # there are lines after them
    job_ended: bool


async def append(session: AsyncSession, job: Job, position: int, text: str) -> None:
    """Add what the processes of a locked job printed from `position` on. Raises InvalidArgument when it is too long."""
    if len(text) > MAX_SENT:
        raise InvalidArgument(f"log_text has {len(text)} characters; send at most {MAX_SENT} at once")
    new = text[max(0, job.log_end - position) :]
    if not new:
        return
    newest = select(JobLogPart).where(JobLogPart.job_id == job.id).order_by(JobLogPart.start.desc()).limit(1)
    part = (await session.scalars(newest)).one_or_none()
    if part is not None and len(part.text) < SMALL_PART:
        part.text += new
    else:
        session.add(JobLogPart(job_id=job.id, start=job.log_end, text=new))
    job.log_end += len(new)
    if job.log_end > MAX_KEPT:
        old = JobLogPart.start < job.log_end - MAX_KEPT - MAX_PART
        await session.execute(delete(JobLogPart).where(JobLogPart.job_id == job.id, old))


class JobLogs:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, job_id: str, token: str, num_lines: int) -> LogPage:
        """At most `num_lines` lines (0: the most) from a page token on. What is kept no more is passed over.

        Raises NotFound, InvalidArgument.
        """
        start = _position(token)
        async with self._database.read() as session:
            job = await read_job(session, job_id)  # before the parts: at its end they are all there
            text, start = await _read_from(session, job.id, start)
        lines, read = _whole_lines(text, min(num_lines or MAX_LINES, MAX_LINES))
        return LogPage(lines, start + read, start + read < job.log_end, job.ended)

    async def tail(self, job_id: str, num_lines: int) -> LogPage:
        """The last lines. Raises NotFound."""
        num_lines = min(num_lines, MAX_LINES)
        async with self._database.read() as session:
            job = await read_job(session, job_id)
            newest_first = select(JobLogPart).where(JobLogPart.job_id == job.id).order_by(JobLogPart.start.desc())
            text, end, before = "", 0, sys.maxsize
            while text.count("\n") <= num_lines:
                query = newest_first.where(JobLogPart.start < before).limit(PARTS_A_PAGE)
                if not (parts := list(await session.scalars(query))):
                    break
                end = end or parts[0].start + len(parts[0].text)  # not the job's: more may have come since it was read
                text = "".join(part.text for part in reversed(parts)) + text
                before = parts[-1].start
        lines = text.removesuffix("\n").split("\n") if text else []
        return LogPage(lines[-num_lines:], end, False, job.ended)


async def _read_from(session: AsyncSession, job_id: str, start: int) -> tuple[str, int]:
    """Text from `start`, or from where it is kept, on; and where it begins."""
    query = (
        select(JobLogPart)
        .where(JobLogPart.job_id == job_id, JobLogPart.start > start - MAX_PART)
        .order_by(JobLogPart.start)
        .limit(PARTS_A_PAGE)
    )
    parts = [part for part in await session.scalars(query) if part.start + len(part.text) > start]
    if not parts:
        return "", start
    start = max(start, parts[0].start)
    return "".join(part.text for part in parts)[start - parts[0].start :], start


def _whole_lines(text: str, at_most: int) -> tuple[list[str], int]:
    """Lines, and how many characters they are with their ends. A last one that is not ended comes where it is alone."""
    if "\n" not in text:
        return ([text] if text else []), len(text)
    lines = text[: text.rindex("\n")].split("\n")[:at_most]
    return lines, sum(len(line) + 1 for line in lines)


def _position(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) <= 18):
        raise InvalidArgument(f"page_token {token[:40]!r} is not of a job's log; leave it empty to start over")
    return int(token)
