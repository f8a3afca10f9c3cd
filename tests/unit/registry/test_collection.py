"""Garbage: what each kind of reference keeps, and that nothing registered ever loses its files."""

import asyncio
import itertools
import os
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from services.common.artifacts import ArtifactStore
from services.common.errors import NotFound
from services.registry import collection, datasets, jobs, leases, references, versions
from services.registry.collection import GRACE_S, Collector
from services.registry.database import Database
from services.registry.leases import Succeeded
from services.registry.pages import PageRequest
from services.registry.uploads import Uploads
from services.registry.verification import MISSING, OK, Verification
from services.registry.versions import NewVersion, Versions
from tests.support.registry_data import store_checkpoint, tokenizer_bytes


def age(artifacts, now, seconds=GRACE_S + 60):
    """As if everything in the store had been written so long before `now`."""
    for path in Path(artifacts._root).rglob("*"):
        if path.is_file():
            os.utime(path, (now.timestamp() - seconds,) * 2)


async def garbage(registry, older_than_s=GRACE_S):
    return {stored.name for stored in await registry.collector.find(older_than_s)}


async def collect(registry, older_than_s=GRACE_S):
    return {stored.name async for stored in registry.collector.collect(older_than_s)}


def everything(artifacts):
    return {stored.name for stored in artifacts.stored()}


async def test_what_nothing_needs_is_told_and_only_on_request_deleted(registry):
    await registry.add_version()
    orphan = registry.artifacts.write_bytes(b"nobody's")
    age(registry.artifacts, registry.clock.now)
    before = everything(registry.artifacts)
    assert await garbage(registry) == {orphan}
    assert everything(registry.artifacts) == before
    assert await collect(registry) == {orphan}
    assert everything(registry.artifacts) == before - {orphan}
    assert await collect(registry) == set()


async def test_what_was_written_within_the_grace_is_left_alone(registry):
    registry.artifacts.write_bytes(b"nobody's yet")
    age(registry.artifacts, registry.clock.now, 3600)
    assert await garbage(registry) == set()
    assert len(await garbage(registry, 3000)) == 1


async def test_versions_datasets_and_waiting_jobs_keep_what_they_name(registry):
    await registry.add_version()
    await registry.add_dataset("udhr")
    tokenizer = registry.artifacts.write_bytes(tokenizer_bytes(281))
    job = await registry.submit(spec=await registry.pretrain_spec(tokenizer_digest=tokenizer))
    age(registry.artifacts, registry.clock.now)
    assert await garbage(registry) == set()
    await registry.leases.acquire(job.id, "w1")
    assert await garbage(registry) == set()
    await registry.jobs.cancel(job.id)
    await registry.leases.release(job.id, 1, "cancelled")
    assert await garbage(registry) == {tokenizer}


async def test_a_finished_jobs_version_keeps_what_it_made(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    made = store_checkpoint(registry.artifacts)
    await registry.leases.finish(job.id, 1, Succeeded(made.files))
    age(registry.artifacts, registry.clock.now)
    assert await garbage(registry) == set()


async def test_an_upload_keeps_its_staged_file_and_what_was_found_to_be_there(registry):
    there = registry.artifacts.write_bytes(b"there")
    begun = await registry.uploads.begin("ada", "sha256:" + "0" * 64, 10)
    leftover = registry.artifacts.staging / "of a service that was killed"
    leftover.write_bytes(b"half")
    age(registry.artifacts, registry.clock.now, 3600)
    assert await garbage(registry, 60) == {there, f"incoming/{leftover.name}"}
    assert (await registry.uploads.begin("bob", there, 5)).upload_id == ""  # who is told so may count on it
    assert await collect(registry, 60) == {f"incoming/{leftover.name}"}
    assert (registry.artifacts.staging / begun.upload_id).exists()
    registry.clock.advance(2 * GRACE_S)
    assert await garbage(registry, 60) == {there}
    assert list(registry.artifacts.staging.iterdir()) == []  # the upload has expired, and with it its file


@contextmanager
def collected_after(monkeypatch, registry, module, function):
    """Everything in the store vanishes when `function` has looked at it, before anything is written to the database."""
    checked = getattr(module, function)

    def check_and_lose(*args, **kwargs):
        result = checked(*args, **kwargs)
        for stored in list(registry.artifacts.stored()):
            registry.artifacts.remove(stored, written_before=stored.modify_time + timedelta(seconds=1))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, function, check_and_lose)
        yield


async def test_a_version_is_refused_when_a_file_was_collected_while_it_was_checked(registry, monkeypatch):
    with (
        collected_after(monkeypatch, registry, versions, "inspect_checkpoint"),
        pytest.raises(NotFound, match="upload it first"),
    ):
        await registry.add_version()
    with pytest.raises(NotFound):
        await registry.aliases.resolve("seedling")


async def test_the_planted_mistake_of_not_looking_again_leaves_a_version_without_files(registry, monkeypatch):
    monkeypatch.setattr(references, "_check_all", lambda artifacts, digests: None)
    with collected_after(monkeypatch, registry, versions, "inspect_checkpoint"):
        await registry.add_version()
    assert MISSING in {found.state async for found in registry.verification.version("seedling")}


async def test_a_dataset_is_refused_when_its_rows_were_collected_while_they_were_checked(registry, monkeypatch):
    with collected_after(monkeypatch, registry, datasets, "check_rows"), pytest.raises(NotFound):
        await registry.add_dataset()
    with pytest.raises(NotFound):
        await registry.datasets.get("udhr")


async def test_a_job_is_refused_when_its_tokenizer_was_collected_while_it_was_checked(registry, monkeypatch):
    spec = await registry.pretrain_spec()
    with collected_after(monkeypatch, registry, jobs, "estimate"), pytest.raises(NotFound):
        await registry.submit(spec=spec)
    assert (await registry.jobs.list_jobs("", PageRequest())).rows == []


async def test_a_job_does_not_end_in_a_version_without_files(registry, monkeypatch):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    made = store_checkpoint(registry.artifacts)
    with collected_after(monkeypatch, registry, leases, "inspect_checkpoint"), pytest.raises(NotFound):
        await registry.leases.finish(job.id, 1, Succeeded(made.files))
    assert (await registry.jobs.get(job.id)).state == "RUNNING"


@pytest.mark.parametrize("locked", [True, False])
async def test_a_registration_waits_for_the_collector_that_is_about_to_delete(registry, monkeypatch, locked):
    """The mistake planted in the second case, a collector that excludes nobody, leaves a version without files.

    On SQLite writers wait for each other anyway: there both cases end well.
    """
    stored = store_checkpoint(registry.artifacts)
    age(registry.artifacts, registry.clock.now)
    new = NewVersion(model="late", licence="mit", files=stored.files, tokenizer_digest=stored.tokenizer_digest)
    waits = locked or registry.database.url.startswith("sqlite")
    looks, registering = [], []
    unneeded = collection._unneeded

    async def look_and_wait(session, candidates, **more):
        """The second look is the one before it deletes: just then somebody registers what it found."""
        found = await unneeded(session, candidates, **more)
        looks.append(found)
        if len(looks) == 2:
            registering.append(asyncio.create_task(registry.versions.create(new)))
            await asyncio.wait(registering, timeout=0.5 if waits else None)
        return found

    monkeypatch.setattr(collection, "_unneeded", look_and_wait)
    if not locked:
        monkeypatch.setattr(collection, "exclude", references.hold_off_collector)
    assert len(await collect(registry)) == 3
    if waits:
        with pytest.raises(NotFound, match="upload it first"):
            await registering[0]
    else:
        version = await registering[0]
        assert not registry.artifacts.exists(version.files[0]["digest"])


async def test_registering_while_collecting_never_leaves_a_version_without_its_files(registry):
    """Threads with connections of their own, as several processes have; every file is old enough to be collected."""
    url, root = registry.database.url, str(registry.artifacts._root)
    done = threading.Event()

    def in_thread(work):
        async def with_database():
            database = Database(url)
            await work(database, ArtifactStore(root, Path(root) / "cache"))
            await database.close()

        return asyncio.to_thread(asyncio.run, with_database())

    def register(number):
        async def work(database, artifacts):
            for i in itertools.count():
                if i >= 4 and len(collected) >= 8:
                    return
                tokenizer = tokenizer_bytes() + b" " * (1000 * number + i)  # a file of its own
                try:
                    artifacts.write_bytes(b"nobody's %d %d" % (number, i))
                    stored = store_checkpoint(artifacts, tokenizer=tokenizer)
                    new = NewVersion(
                        model=f"m{number}", licence="mit", files=stored.files, tokenizer_digest=stored.tokenizer_digest
                    )
                    await Versions(database, artifacts).create(new)
                    outcomes.append("registered")
                except (NotFound, FileNotFoundError):  # the latter: what is just being written is old enough, too
                    outcomes.append("collected")

        return work

    async def collecting(database, artifacts):
        collector = Collector(database, artifacts, Uploads(database, artifacts))
        while not done.is_set():
            collected.extend([stored async for stored in collector.collect(-3600)])  # as if it were later

    outcomes, collected = [], []
    collector = asyncio.ensure_future(in_thread(collecting))
    await asyncio.gather(*(in_thread(register(number)) for number in range(3)))
    done.set()
    await collector
    assert "registered" in outcomes
    found = [item async for item in Verification(registry.database, registry.artifacts).everything()]
    assert {item.state for item in found if item.needed_by} <= {OK}
