import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import Aborted, InvalidArgument, NotFound
from services.registry import job_logs
from services.registry.job_logs import MAX_LINES, MAX_SENT, LogPage
from services.registry.leases import Printed


async def running(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    return job


async def send(registry, job, position, text):
    await registry.leases.renew(job.id, 1, printed=Printed(position, text))


async def read_all(registry, job, page_size=0):
    """Every line, page by page."""
    lines, token = [], ""
    while True:
        page = await registry.logs.read(job.id, token, page_size)
        assert len(page.lines) <= (page_size or MAX_LINES)
        lines += page.lines
        if not page.more:
            return lines
        assert page.lines, "a page that leads nowhere"
        token = str(page.end)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n\0"), max_size=30)),
    cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 300))),
    page_size=st.integers(1, 7),
)
async def test_however_it_is_sent_and_sent_again_what_is_read_is_what_was_printed(registry, lines, cuts, page_size):
    printed = "".join(line + "\n" for line in lines)
    job = await running(registry)
    end = 0
    for back, size in [*cuts, (0, len(printed))]:  # each begins up to 40 characters before what is known already
        start = max(0, end - back)
        await send(registry, job, start, printed[start : end + size])
        end = min(len(printed), end + size)
    assert (await registry.jobs.get(job.id)).log_end == len(printed)
    assert await read_all(registry, job, page_size) == lines
    for count in (1, page_size):
        assert (await registry.logs.tail(job.id, count)).lines == lines[-count:]


async def test_a_reader_that_follows_misses_nothing_and_sees_when_the_job_has_ended(registry):
    job = await running(registry)
    assert await registry.logs.read(job.id, "", 0) == LogPage([], 0, False, False)
    await send(registry, job, 0, "one\ntwo\n")
    page = await registry.logs.read(job.id, "", 0)
    assert page == LogPage(["one", "two"], 8, False, False)
    await send(registry, job, 8, "three\n")
    await registry.jobs.cancel(job.id)
    await registry.leases.release(job.id, 1, "told to stop")
    assert await registry.logs.read(job.id, str(page.end), 0) == LogPage(["three"], 14, False, True)


async def test_the_newest_is_kept_and_the_oldest_goes(registry, monkeypatch):
    for name, value in (("MAX_KEPT", 5000), ("SMALL_PART", 500), ("MAX_PART", 1500)):
        monkeypatch.setattr(job_logs, name, value)
    job = await running(registry)
    lines = [f"line {number:05}" for number in range(2000)]
    for start in range(0, 2000, 50):
        await send(registry, job, start * 11, "".join(line + "\n" for line in lines[start : start + 50]))
    kept = await read_all(registry, job)
    assert kept == lines[-len(kept) :]
    assert 5000 <= len(kept) * 11 <= 5000 + 2 * 1500
    assert (await registry.logs.tail(job.id, 3)).lines == lines[-3:]


async def test_a_line_without_an_end_is_read_alone(registry):
    job = await running(registry)
    await send(registry, job, 0, "whole\nhal")
    first = await registry.logs.read(job.id, "", 0)
    assert (first.lines, first.more) == (["whole"], True)
    assert (await registry.logs.read(job.id, str(first.end), 0)).lines == ["hal"]
    assert (await registry.logs.tail(job.id, 1)).lines == ["hal"]


async def test_a_stale_worker_prints_nothing_and_too_much_is_refused(registry):
    job = await running(registry)
    registry.clock.advance(15)
    await registry.leases.acquire(job.id, "w2")
    with pytest.raises(Aborted, match="stale"):
        await send(registry, job, 0, "an old attempt's\n")
    with pytest.raises(InvalidArgument, match=f"log_text has {MAX_SENT + 1} characters; send at most {MAX_SENT}"):
        await registry.leases.renew(job.id, 2, printed=Printed(0, "x" * (MAX_SENT + 1)))
    assert await read_all(registry, job) == []


@pytest.mark.parametrize("token", ["x", "-1", "1e3", "٣", "9" * 19, "1\n"])
async def test_a_token_of_another_list_is_refused(registry, token):
    job = await registry.submit()
    with pytest.raises(InvalidArgument, match="is not of a job's log; leave it empty"):
        await registry.logs.read(job.id, token, 0)
    with pytest.raises(NotFound):
        await registry.logs.read("job-0", "", 0)
    with pytest.raises(NotFound):
        await registry.logs.tail("job-0", 1)
