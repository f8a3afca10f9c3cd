"""Files: what is taken, whose they are, what keeps their bytes, and the file that a job's metrics make."""

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.common.auth import Principal
from services.common.errors import InvalidArgument, NotFound
from services.registry import files
from services.registry.collection import GRACE_S
from services.registry.files import FINE_TUNE, RESULTS, FileQuery, NewFile
from services.registry.job_specs import TrainOptions
from services.registry.jobs import NewJob
from services.registry.leases import Failed, Succeeded
from services.registry.pages import PageRequest
from services.registry.references import read_references
from tests.support.registry_data import multitask_rows, store_checkpoint

ADA, BOB, ADMIN = Principal("1", "ada", "trainer"), Principal("2", "bob", "trainer"), Principal("3", "root", "admin")
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ROWS = b'{"inputs": "in", "targets": "out"}\n'


@dataclass
class Asked:
    """Fields of a job that OpenAI's API submits."""

    model: str = "seedling"
    training_file: str = "file-1"
    validation_file: str = ""
    suffix: str = ""
    learning_rate_multiplier: float = 1.0
    metadata: dict[str, str] = field(default_factory=dict)


async def create(registry, content: bytes = ROWS, **changes):
    values = {"filename": "rows.jsonl", "purpose": FINE_TUNE, "created_by": "ada"} | changes
    return await registry.files.create(NewFile(digest=registry.artifacts.write_bytes(content), **values))


async def ids(registry, principal=ADA, page=PageRequest(), **query):  # noqa: B008
    return [file.id for file in (await registry.files.list_files(principal, FileQuery(**query), page)).rows]


@pytest.mark.parametrize(
    ("rows", "row_format"),
    [
        ([{"messages": TALK}, {"messages": TALK}], "MULTITASK"),
        ([{"prompt": "a", "completion": "b"}, {"inputs": "a", "targets": "b"}, {"messages": TALK}], "MULTITASK"),
        ([{"text": "a"}, {"text": "longer"}], "TEXT"),
    ],
)
async def test_the_first_row_says_what_a_files_rows_are(registry, rows, row_format):
    lines = [json.dumps(row) for row in rows]
    file = await create(registry, "\n".join(lines).encode())
    assert (file.format, file.num_rows, file.longest_row_bytes) == (row_format, len(rows), max(map(len, lines)))
    assert (await registry.files.get(ADA, file.id)).filename == "rows.jsonl"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ROWS + b"{", r"1 of 2 rows are not MULTITASK rows.*\nrow 2: not JSON"),
        (ROWS + b'{"inputs": "a"}', r'row 2: no "targets"'),
        (b'{"text": "a"}\n{"txt": "b"}', r'row 2: no "text"'),
        (b'{"messages": [{"role": "user", "content": "Hi"}]}', "row 1: the last message is of the user"),
        (b'{"prompt": "a"}\n', 'row 1: no "completion"'),
        (b"", "has no rows"),
        (b"\xff\xfe", "row 1: not UTF-8"),
    ],
)
async def test_a_file_that_nothing_can_be_learnt_from_is_refused_with_row_and_field(registry, content, reason):
    with pytest.raises(InvalidArgument, match=f"(?s){reason}"):
        await create(registry, content)
    assert await ids(registry) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b.jsonl", "a\\b.jsonl", "../../etc/passwd", "a\nb", "a\x00b", "a\u202eb", "x" * 256]
)
async def test_a_filename_that_is_none_is_refused(registry, name):
    with pytest.raises(InvalidArgument, match=r"filename .* is not allowed; use 1 to 255 printable characters"):
        await create(registry, filename=name)
    assert await ids(registry) == []


async def test_other_purposes_and_lifetimes_are_refused(registry):
    for purpose in ("batch", RESULTS, ""):
        with pytest.raises(InvalidArgument, match=r"is not supported; use 'fine-tune'"):
            await create(registry, purpose=purpose)
    for lifetime_s in (0, 3599, 30 * 86_400 + 1):
        with pytest.raises(InvalidArgument, match="out of range; choose 3600 to 2592000"):
            await create(registry, lifetime_s=lifetime_s)
    with pytest.raises(NotFound, match="no artifact"):
        await registry.files.create(
            NewFile(filename="a", purpose=FINE_TUNE, digest="sha256:" + "0" * 64, created_by="ada")
        )


async def others_see_nothing(registry):
    file = await create(registry)
    assert (await ids(registry), await ids(registry, BOB), await ids(registry, ADMIN)) == ([file.id], [], [file.id])
    for call in (registry.files.get(BOB, file.id), registry.files.delete(BOB, file.id)):
        with pytest.raises(NotFound, match=f"no file '{file.id}' of 'bob'"):
            await call
    assert (await registry.files.get(ADMIN, file.id)).created_by == "ada"


async def test_others_see_nothing_of_a_file_and_admins_do(registry):
    await others_see_nothing(registry)


async def test_a_file_that_others_could_see_is_noticed(registry, monkeypatch):
    """The planted mistake: who asks is not looked at."""
    monkeypatch.setattr(files.Files, "_visible", lambda self, principal: [])
    with pytest.raises(AssertionError):
        await others_see_nothing(registry)


async def test_files_are_listed_from_either_end_and_by_purpose_in_pages(registry):
    made = []
    for _ in range(5):
        made.append((await create(registry)).id)
        registry.clock.advance(1)
    assert await ids(registry) == made[::-1]
    assert await ids(registry, oldest_first=True) == made
    assert await ids(registry, after=made[2]) == made[1::-1]
    assert await ids(registry, after=made[2], oldest_first=True) == made[3:]
    assert await ids(registry, purpose=RESULTS) == []
    first = await registry.files.list_files(ADA, FileQuery(), PageRequest(size=3))
    assert [file.id for file in first.rows] == made[:1:-1]
    assert await ids(registry, page=PageRequest(token=first.next_token)) == made[1::-1]
    with pytest.raises(InvalidArgument, match="is not from this list"):
        await ids(registry, page=PageRequest(token=first.next_token), oldest_first=True)


async def test_the_same_idempotency_key_gives_the_same_file(registry):
    first = await create(registry, idempotency_key="once")
    assert (await create(registry, idempotency_key="once")).id == first.id
    assert (await create(registry, idempotency_key="once", created_by="bob")).id != first.id
    assert len(await ids(registry)) == 1
    assert len({(await create(registry)).id for _ in range(2)}) == 2


async def test_a_file_with_a_lifetime_is_gone_at_its_end(registry):
    file = await create(registry, lifetime_s=3600)
    registry.clock.advance(3599)
    assert await ids(registry) == [file.id]
    registry.clock.advance(1)
    assert await ids(registry, ADMIN) == []
    with pytest.raises(NotFound):
        await registry.files.get(ADA, file.id)
    other = await create(registry, multitask_rows(2))
    async with registry.database.read() as session:
        needed = await read_references(session)
    assert [name for names in needed.values() for name in names] == [f"file {other.id}"]


def age_artifacts(registry) -> None:
    """As if they had been written long before."""
    for path in Path(registry.artifacts._root).rglob("*"):
        if path.is_file():
            os.utime(path, (registry.clock.now.timestamp() - GRACE_S - 60,) * 2)


async def test_a_files_bytes_are_kept_until_it_is_deleted(registry):
    file = await create(registry)
    age_artifacts(registry)
    assert await registry.collector.find() == []
    await registry.files.delete(ADA, file.id)
    with pytest.raises(NotFound):
        await registry.files.get(ADA, file.id)
    assert [stored.name for stored in await registry.collector.find()] == [file.digest]


def step(number: int, loss: float | str, **more) -> dict:
    figures = {"learning_rate": 0.5, "grad_norm": 2.0, "tokens_seen": 8 * number}
    return {"step": number, "loss": loss, "time": "2026-01-01T00:00:00+00:00"} | figures | more


async def run(registry, outcome, **new):
    spec = await registry.fine_tune_spec(options=TrainOptions(epochs=1.0))
    job = await registry.jobs.create(NewJob(spec=spec, created_by="ada", **new))
    await registry.leases.acquire(job.id, "w1")
    halves = [{"num_bytes": 30, "bits_per_byte": 1.0}, {"num_bytes": 10, "bits_per_byte": 3.0}]
    reports = [step(1, 4.0), step(2, "nan"), step(1, 4.0), step(2, 3.5), step(3, 3.0, validation=halves)]
    await registry.leases.renew(job.id, 1, reports)
    return await registry.leases.finish(job.id, 1, outcome)


async def test_a_fine_tuning_that_succeeds_leaves_a_file_of_its_metrics(registry):
    job = await run(registry, Succeeded(store_checkpoint(registry.artifacts).files), fine_tuning=vars(Asked()))
    (file,) = (await registry.files.list_files(ADA, FileQuery(purpose=RESULTS), PageRequest())).rows
    assert (file.id, file.created_by) == (job.id.replace("job-", "file-"), "ada")
    content = registry.artifacts.read_bytes(file.digest).decode()
    assert len(content) == file.size_bytes
    rows = list(csv.DictReader(content.splitlines()))
    assert [(row["step"], row["train_loss"], row["valid_bits_per_byte"]) for row in rows] == [
        ("1", "4.0", ""), ("2", "3.5", ""), ("3", "3.0", "1.5")
    ]  # fmt: skip
    assert rows[2]["tokens_seen"] == "24"


async def test_other_jobs_and_those_that_fail_leave_none(registry):
    await run(registry, Failed("BAD_DATA", "no"), fine_tuning=vars(Asked()))
    await run(registry, Succeeded(store_checkpoint(registry.artifacts).files))
    assert await ids(registry, ADMIN) == []


async def test_what_json_cannot_hold_or_is_too_long_is_refused_in_a_fine_tuning(registry):
    spec = await registry.fine_tune_spec(options=TrainOptions(epochs=1.0))
    for asked, reason in (
        (Asked(learning_rate_multiplier=float("nan")), "learning_rate_multiplier is nan"),
        (Asked(metadata={"a": "x" * 70_000}), "send at most 65536"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            await registry.jobs.create(NewJob(spec=spec, created_by="ada", fine_tuning=vars(asked)))
    assert (await registry.jobs.list_jobs("", PageRequest())).rows == []
