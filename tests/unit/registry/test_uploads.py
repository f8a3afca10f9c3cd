"""Uploads that break off, go on, lie, are too many or too old: on the real store and both databases."""

import asyncio
import hashlib
import os
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from services.common.artifacts import ArtifactStore
from services.common.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.registry.database import Database
from services.registry.pages import PageRequest
from services.registry.tables import Upload
from services.registry.upload_limits import UploadLimits
from services.registry.uploads import Uploads
from tests.support.registry_data import DATABASES, fresh_database
from tests.support.small_disk import fill, small_disk

DATA = b"the weights of a model, in two halves"
HALF = len(DATA) // 2


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def stream(*chunks):
    for chunk in chunks:
        yield chunk


async def broken(*chunks):
    """A sender that dies after `chunks`."""
    for chunk in chunks:
        yield chunk
    raise ConnectionError


async def begin(registry, data=DATA, principal="ada", **options):
    return await registry.uploads.begin(principal, digest_of(data), len(data), **options)


async def send(registry, begun, chunks, data=DATA, principal="ada", offset=None):
    upload = await registry.uploads.get(principal, begun.upload_id, digest_of(data), len(data))
    await registry.uploads.receive(upload, begun.offset if offset is None else offset, chunks)


async def break_off(registry, data=DATA, sent=HALF, principal="ada"):
    begun = await begin(registry, data, principal)
    with pytest.raises(ConnectionError):
        await send(registry, begun, broken(data[:sent]), data, principal)
    return begun


async def rows(registry):
    async with registry.database.read() as session:
        return list(await session.scalars(select(Upload)))


def staged(registry):
    return sorted(registry.artifacts.staging.iterdir()) if registry.artifacts.staging.exists() else []


async def test_an_upload_goes_on_where_it_broke_off_also_after_the_registry_died(registry):
    first = await break_off(registry)
    registry.uploads = Uploads(registry.database, registry.artifacts)  # as a new process: it knows nothing
    again = await begin(registry)
    assert (first.offset, again.upload_id, again.offset) == (0, first.upload_id, HALF)
    await send(registry, again, stream(DATA[HALF:]))
    assert registry.artifacts.read_bytes(digest_of(DATA)) == DATA
    assert staged(registry) == []


async def test_what_lies_on_disk_is_hashed_again_so_that_damage_is_found_at_the_end(registry):
    await break_off(registry)
    (path,) = staged(registry)
    path.write_bytes(b"X" * HALF)
    with pytest.raises(DataLoss, match="send them again"):
        await send(registry, await begin(registry), stream(DATA[HALF:]))
    assert (staged(registry), await rows(registry)) == ([], [])
    assert not registry.artifacts.exists(digest_of(DATA))
    assert (await begin(registry)).offset == 0


async def test_a_sender_may_go_back_but_not_beyond_what_came(registry):
    await break_off(registry)
    begun = await begin(registry)
    with pytest.raises(FailedPrecondition, match=f"offset {HALF + 1} is behind the {HALF} bytes that are here"):
        await send(registry, begun, stream(DATA[HALF + 1 :]), offset=HALF + 1)
    await send(registry, begun, stream(DATA[5:]), offset=5)
    assert registry.artifacts.read_bytes(digest_of(DATA)) == DATA


async def test_what_is_there_is_not_asked_for_and_sent_again_only_on_request(registry):
    await send(registry, await begin(registry), stream(DATA))
    assert (await begin(registry)).upload_id == ""
    assert (await begin(registry, principal="bob")).upload_id == ""
    registry.artifacts.local_path(digest_of(DATA)).write_bytes(b"X" * len(DATA))  # damaged, of the same size
    assert (await begin(registry)).upload_id == ""
    await send(registry, await begin(registry, again=True), stream(DATA))
    assert registry.artifacts.read_bytes(digest_of(DATA)) == DATA
    registry.artifacts.local_path(digest_of(DATA)).write_bytes(DATA[:3])  # cut off: its size shows it
    await send(registry, await begin(registry), stream(DATA))
    assert registry.artifacts.read_bytes(digest_of(DATA)) == DATA


@pytest.mark.parametrize("sent", [DATA + b"!", DATA[:-1] + b"!"])
async def test_an_upload_that_lies_is_refused_and_leaves_nothing(registry, sent):
    with pytest.raises((InvalidArgument, DataLoss)):
        await send(registry, await begin(registry), stream(sent[:9], sent[9:]))
    assert (staged(registry), await rows(registry)) == ([], [])
    assert not registry.artifacts.exists(digest_of(DATA))


async def test_all_bytes_under_too_great_a_size_are_a_lie_and_fewer_are_a_break(registry):
    begun = await registry.uploads.begin("ada", digest_of(DATA), len(DATA) + 1)
    upload = await registry.uploads.get("ada", begun.upload_id, digest_of(DATA), len(DATA) + 1)
    with pytest.raises(InvalidArgument, match="fewer came; BeginUpload says where to go on"):
        await registry.uploads.receive(upload, 0, stream(DATA[:-1]))
    assert len(staged(registry)) == 1
    with pytest.raises(InvalidArgument, match=f"its header says {len(DATA) + 1} bytes, {len(DATA)} came"):
        await registry.uploads.receive(upload, len(DATA) - 1, stream(DATA[-1:]))
    assert (staged(registry), await rows(registry)) == ([], [])


async def test_an_upload_is_its_principals_own(registry):
    begun = await break_off(registry)
    other = await begin(registry, principal="bob")
    assert (other.offset, other.upload_id == begun.upload_id) == (0, False)
    with pytest.raises(NotFound, match=r"no unfinished upload .* of 'bob'; BeginUpload begins another"):
        await send(registry, begun, stream(DATA), principal="bob")
    with pytest.raises(InvalidArgument, match="begin another for these"):
        await registry.uploads.get("ada", begun.upload_id, digest_of(DATA), len(DATA) + 1)


async def test_two_uploaders_of_one_artifact_do_not_harm_each_other(registry):
    """Both are halfway at the same time; the second one to end finds the artifact there."""
    halfway = asyncio.Barrier(2)

    async def slowly():
        yield DATA[:HALF]
        await halfway.wait()
        yield DATA[HALF:]

    async def uploader():
        for _ in range(3):
            begun = await begin(registry)
            try:
                return await send(registry, begun, slowly())
            except Aborted:  # the other one was told of the same
                continue
        raise AssertionError("no upload of its own")

    await asyncio.gather(uploader(), uploader())
    assert registry.artifacts.read_bytes(digest_of(DATA)) == DATA
    assert staged(registry) == []


async def test_a_sender_that_names_its_upload_ends_the_stream_that_hangs(registry):
    """The connection is gone, and the registry has not noticed: the sender connects again."""
    came = asyncio.Event()

    async def hanging():
        yield DATA[:HALF]
        came.set()
        await asyncio.Event().wait()

    begun = await begin(registry)
    hangs = asyncio.create_task(send(registry, begun, hanging()))
    await came.wait()
    beside = await begin(registry)
    assert (beside.offset, beside.upload_id == begun.upload_id) == (0, False)
    again = await begin(registry, upload_id=begun.upload_id)
    assert (again.upload_id, again.offset) == (begun.upload_id, HALF)
    with pytest.raises(Aborted, match="goes on in another stream"):
        await hangs
    await send(registry, again, stream(DATA[HALF:]))
    assert registry.artifacts.read_bytes(digest_of(DATA)) == DATA


async def test_unfinished_uploads_are_bounded_in_number_and_bytes_for_each_principal(registry):
    registry.uploads = Uploads(registry.database, registry.artifacts, UploadLimits(max_uploads=3, max_bytes=100))
    await asyncio.gather(*(begin(registry, bytes(size)) for size in (10, 11, 12)))
    with pytest.raises(ResourceExhausted, match="'ada' has 3 unfinished uploads of 33 bytes and asks for 1 more"):
        await begin(registry, b"x")
    assert (await begin(registry, bytes(10))).offset == 0  # one of the three
    await begin(registry, bytes(60), principal="bob")
    with pytest.raises(ResourceExhausted, match="3 and 100 are allowed: finish or abandon one, or wait"):
        await begin(registry, bytes(41), principal="bob")
    with pytest.raises(ResourceExhausted):
        await registry.uploads.start("eve", digest_of(b""), 2**64 - 1)
    with pytest.raises(ResourceExhausted):
        await registry.uploads.begin("eve", digest_of(b""), 2**64 - 1)
    await send(registry, await begin(registry, bytes(10)), stream(bytes(10)), bytes(10))
    await begin(registry, b"x")  # there is room again


async def unfinished(registry, principal="ada", **page):
    return await registry.uploads.list_unfinished(principal, PageRequest(**page))


async def test_unfinished_uploads_are_listed_with_what_came_and_when_they_expire(registry):
    await send(registry, await begin(registry, b"whole"), stream(b"whole"), b"whole")
    begun = await break_off(registry)
    registry.clock.advance(1)
    last = await begin(registry, b"another")
    await begin(registry, b"bob's", principal="bob")
    first, second = (await unfinished(registry)).rows
    assert (first.upload.id, first.received, first.upload.size_bytes) == (begun.upload_id, HALF, len(DATA))
    (path,) = [path for path in staged(registry) if path.name == begun.upload_id]
    assert first.expires == datetime.fromtimestamp(path.stat().st_mtime, UTC) + timedelta(days=1)
    assert (second.upload.id, second.received, second.is_sent) == (last.upload_id, 0, False)
    page = await unfinished(registry, size=1)
    assert [row.upload.id for row in page.rows] == [begun.upload_id]
    rest = await unfinished(registry, size=1, token=page.next_token)
    assert ([row.upload.id for row in rest.rows], rest.next_token) == ([last.upload_id], "")
    with pytest.raises(InvalidArgument, match="is not from this list"):
        await unfinished(registry, "bob", token=page.next_token)


async def test_what_is_abandoned_is_gone_and_its_room_free_at_once(registry):
    registry.uploads = Uploads(registry.database, registry.artifacts, UploadLimits(max_uploads=1))
    begun = await break_off(registry)
    with pytest.raises(ResourceExhausted, match="finish or abandon one"):
        await begin(registry, b"x")
    await registry.uploads.abandon("ada", begun.upload_id)
    assert (staged(registry), await rows(registry)) == ([], [])
    assert (await begin(registry, b"x")).offset == 0
    with pytest.raises(NotFound):
        await send(registry, begun, stream(DATA))


async def test_anothers_a_finished_and_an_abandoned_upload_cannot_be_abandoned(registry):
    finished = await begin(registry, b"whole")
    await send(registry, finished, stream(b"whole"), b"whole")
    bobs = await break_off(registry, principal="bob")
    gone = await break_off(registry)
    await registry.uploads.abandon("ada", gone.upload_id)
    for upload_id in (finished.upload_id, bobs.upload_id, gone.upload_id, "", "../../etc/passwd", "x" * 5000):
        with pytest.raises(NotFound):
            await registry.uploads.abandon("ada", upload_id)
    assert [path.name for path in staged(registry)] == [bobs.upload_id]
    assert registry.artifacts.exists(digest_of(b"whole"))
    assert registry.artifacts.staging.joinpath(bobs.upload_id).read_bytes() == DATA[:HALF]


async def test_of_two_that_abandon_an_upload_one_finds_it(registry):
    begun = await break_off(registry)
    twice = (registry.uploads.abandon("ada", begun.upload_id) for _ in range(2))
    ended = await asyncio.gather(*twice, return_exceptions=True)
    assert {type(error) for error in ended} == {type(None), NotFound}


async def test_an_upload_that_is_being_sent_ends_when_it_is_abandoned(registry):
    came = asyncio.Event()

    async def hanging():
        yield DATA[:HALF]
        came.set()
        await asyncio.Event().wait()

    begun = await begin(registry)
    sending = asyncio.create_task(send(registry, begun, hanging()))
    await came.wait()
    (found,) = (await unfinished(registry)).rows
    assert found.is_sent
    await registry.uploads.abandon("ada", begun.upload_id)
    with pytest.raises(FailedPrecondition, match=f"{begun.upload_id} was abandoned"):
        await sending
    assert (staged(registry), await rows(registry)) == ([], [])
    assert not registry.artifacts.exists(digest_of(DATA))


async def test_an_upload_expires_with_its_file_unless_it_is_being_sent(registry):
    await break_off(registry)
    (path,) = staged(registry)
    written = registry.clock.now - timedelta(hours=23)
    os.utime(path, (written.timestamp(),) * 2)
    assert (await begin(registry)).offset == HALF
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def slowly():
        waiting.set()
        await go_on.wait()
        yield DATA[HALF:]

    sending = asyncio.create_task(send(registry, await begin(registry), slowly()))
    await waiting.wait()
    os.utime(path, (written.timestamp(),) * 2)
    registry.clock.advance(2 * 3600)
    await registry.uploads.expire()
    assert staged(registry) == [path]
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await registry.uploads.expire()
    assert (staged(registry), await rows(registry)) == ([], [])


async def test_a_registry_that_died_between_artifact_and_row_leaves_no_upload_open(registry):
    await break_off(registry)
    (path,) = staged(registry)
    path.write_bytes(DATA)
    registry.artifacts.adopt(digest_of(DATA), path)  # and here it died
    assert (await begin(registry)).upload_id == ""
    assert [row.finish_time is None for row in await rows(registry)] == [False]


async def test_a_full_disk_costs_no_byte_that_came(registry, tmp_path):
    with small_disk(tmp_path / "disk", "64k"):
        registry.artifacts = ArtifactStore(str(tmp_path / "disk"), tmp_path / "cache")
        registry.uploads = Uploads(registry.database, registry.artifacts)
        data = os.urandom(32 << 10)
        begun = await begin(registry, data)
        filler = fill(tmp_path / "disk")
        os.truncate(filler, filler.stat().st_size - (8 << 10))
        with pytest.raises(ResourceExhausted, match=r"the registry's disk is full .* make room and go on"):
            await send(registry, begun, stream(data), data)
        filler.unlink()
        again = await begin(registry, data)
        assert 0 < again.offset < len(data)
        await send(registry, again, stream(data[again.offset :]), data)
        assert registry.artifacts.read_bytes(digest_of(data)) == data


def test_limits_come_from_the_environment():
    env = {"ANTHESIS_MAX_UPLOADS": "2", "ANTHESIS_MAX_UPLOAD_BYTES": "10", "ANTHESIS_UPLOAD_EXPIRY_SECONDS": "1.5"}
    assert UploadLimits.from_env(env) == UploadLimits(max_uploads=2, max_bytes=10, expiry_s=1.5)
    assert UploadLimits.from_env({}) == UploadLimits()


async def test_an_empty_file_is_an_artifact(registry):
    await send(registry, await begin(registry, b""), stream(), b"")
    assert registry.artifacts.read_bytes(digest_of(b"")) == b""


class World:
    """One database and store for all histories: each sends an artifact of its own."""

    def __init__(self, url, folder):
        self.runner = asyncio.Runner()
        self.database = Database(url)
        self.artifacts = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        self.number = 0
        self.start_registry()

    def start_registry(self):
        self.uploads = Uploads(self.database, self.artifacts)

    def close(self):
        self.runner.run(self.database.close())
        self.runner.close()


@pytest.fixture(params=DATABASES)
def world(request, tmp_path):
    world = World(fresh_database(request.param, tmp_path), tmp_path)
    yield world
    world.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(min_size=1, max_size=200),
    breaks=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()), max_size=5),
)
def test_however_often_it_breaks_off_the_artifact_is_what_was_sent(world, data, breaks):
    """Each time some bytes come, perhaps from before the end of what is here, and perhaps the registry dies."""
    world.number += 1
    data = world.number.to_bytes(4, "big") + data

    async def history():
        here = 0
        for back, more, dies in breaks:
            begun = await begin(world, data)
            assert begun.offset == here
            start = max(0, here - back)
            here = min(len(data) - 1, start + more)
            with pytest.raises(ConnectionError):
                await send(world, begun, broken(data[start:here]), data, offset=start)
            assert not world.artifacts.exists(digest_of(data))
            if dies:
                world.start_registry()
        begun = await begin(world, data)
        assert begun.offset == here
        await send(world, begun, stream(data[here:]), data)

    world.runner.run(history())
    assert world.artifacts.read_bytes(digest_of(data)) == data
    assert staged(world) == []
