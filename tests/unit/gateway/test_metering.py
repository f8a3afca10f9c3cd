"""What the gateway counts and tells, what it refuses, and by how much a project can go over."""

import asyncio
import math
from datetime import UTC, datetime

import pytest

from services.common.auth import Call, Principal, current_call, set_call
from services.common.errors import InvalidArgument, Unavailable
from services.gateway.metering import FORGET_AFTER_S, Allowance, Counts, Meter, QuotaExceeded, Used, set_language

ADA = Used("lab", "lab/ada", "seedling@1", "")


class Registry:
    """Adds up what it is told, once for each batch; breaks off where a test says so."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.total: dict[Used, Counts] = {}
        self.asked: list[list[str]] = []
        self.quotas: dict[str, Allowance] = {}
        self.lose_answer = False  # what was told arrives, the answer does not
        self.away = False

    async def report(self, batch_id, used, projects):
        if self.away:
            raise Unavailable("away")
        self.asked.append(list(projects))
        if used and batch_id not in self.seen:
            self.seen.add(batch_id)
            for by, counts in used.items():
                self.total.setdefault(by, Counts()).add(counts)
        if self.lose_answer:
            raise Unavailable("the answer is lost")
        return {name: self.allowance(name) for name in projects if name in self.quotas}

    def allowance(self, name):
        quota = self.quotas[name]
        tokens = sum(counts.tokens for used, counts in self.total.items() if used.project == name)
        return Allowance(
            requests_per_minute=quota.requests_per_minute, tokens_per_day=quota.tokens_per_day, tokens_today=tokens
        )


@pytest.fixture
def registry():
    return Registry()


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def meter(registry, clock):
    return Meter(registry, every_s=math.inf, clock=clock, now=lambda: datetime(2026, 11, 29, 18, tzinfo=UTC))


@pytest.fixture(autouse=True)
def ada_calls():
    before = current_call()
    call("lab")
    yield
    set_call(before)


def call(project, name="ada"):
    principal = Principal("key", f"{project}/{name}" if project else name, "user", project=project)
    set_call(Call(principal, "GenerationService.Generate"))
    set_language(None)


async def test_what_was_counted_is_told_by_principal_version_and_language(meter, registry):
    meter.count("seedling@1", requests=1)
    meter.count("seedling@1", prompt_tokens=3)
    meter.count("seedling@1", completion_tokens=4)
    set_language("fr")
    meter.count("seedling@1", requests=1)
    call("", "root")
    meter.count("seedling@2", prompt_tokens=1)
    await meter.flush()
    assert registry.total == {
        ADA: Counts(1, 3, 4),
        Used("lab", "lab/ada", "seedling@1", "fr"): Counts(1),
        Used("", "root", "seedling@2", ""): Counts(0, 1),
    }


async def test_nothing_counts_twice_and_nothing_is_lost_when_answers_are(meter, registry):
    meter.count("seedling@1", requests=1)
    registry.lose_answer = True
    with pytest.raises(Unavailable):
        await meter.flush()
    meter.count("seedling@1", requests=1)  # comes while the first is not known to have arrived
    registry.away = True
    with pytest.raises(Unavailable):
        await meter.flush()
    registry.away = registry.lose_answer = False
    await meter.flush()
    await meter.flush()
    assert registry.total == {ADA: Counts(2)}
    assert len(registry.seen) == 2


async def test_what_is_left_is_told_at_the_end(meter, registry):
    running = asyncio.create_task(meter.run())
    registry.lose_answer = True
    meter.count("seedling@1", requests=1)
    with pytest.raises(Unavailable):
        await meter.flush()
    registry.lose_answer = False
    meter.count("seedling@1", requests=1)
    await meter.stop(running)
    assert registry.total == {ADA: Counts(2)}


async def test_a_project_makes_as_many_requests_a_minute_as_it_may(meter, registry, clock):
    registry.quotas["lab"] = Allowance(requests_per_minute=2)
    registry.quotas["other"] = Allowance()
    await meter.admit()
    clock.seconds = 20
    await meter.admit()
    with pytest.raises(
        QuotaExceeded, match="project 'lab' may make 2 requests a minute and has; try again in 40 s"
    ) as no:
        await meter.admit()
    assert no.value.retry_delay_s == 40
    call("other")
    for _ in range(5):
        await meter.admit()
    call("lab")
    clock.seconds = 60
    await meter.admit()
    assert registry.asked == [["lab"], ["other"]]  # each once, not at every request


async def test_tokens_that_were_counted_here_hold_before_they_are_told(meter, registry):
    registry.quotas["lab"] = Allowance(tokens_per_day=10)
    await meter.admit()
    meter.count("seedling@1", prompt_tokens=6)
    await meter.admit()
    meter.count("seedling@1", completion_tokens=7)  # the request under way ends: 3 over
    for _ in range(2):
        with pytest.raises(
            QuotaExceeded, match="may use 10 tokens a day and has used 13; there are more from mid"
        ) as no:
            await meter.admit()
        assert no.value.retry_delay_s == 6 * 3600
        await meter.flush()


async def test_what_other_gateways_told_holds_from_the_next_report_on(registry, clock):
    registry.quotas["lab"] = Allowance(tokens_per_day=10)
    first, second = (Meter(registry, every_s=math.inf, clock=clock) for _ in range(2))
    await first.admit()
    await second.admit()
    first.count("seedling@1", prompt_tokens=10)
    await first.flush()
    await second.admit()  # it has not heard yet
    await second.flush()
    with pytest.raises(QuotaExceeded):
        await second.admit()


async def test_a_raised_quota_counts_from_the_next_report_on(meter, registry):
    registry.quotas["lab"] = Allowance(requests_per_minute=1)
    await meter.admit()
    with pytest.raises(QuotaExceeded):
        await meter.admit()
    registry.quotas["lab"] = Allowance()
    await meter.flush()
    await meter.admit()


async def test_while_the_registry_is_away_what_was_last_known_holds(meter, registry):
    registry.away = True
    with pytest.raises(Unavailable):  # nothing is known of the project: it is not let through
        await meter.admit()
    registry.away = False
    await meter.admit()
    registry.away = True
    await meter.admit()
    call("")
    await meter.admit()  # the platform's own keys have no quotas


async def test_projects_that_nobody_calls_for_are_no_longer_asked_for(meter, registry, clock):
    registry.quotas["lab"] = Allowance()
    await meter.admit()
    clock.seconds = FORGET_AFTER_S
    await meter.flush()
    clock.seconds += 1
    await meter.flush()
    assert registry.asked == [["lab"], ["lab"]]


@pytest.mark.parametrize("value", ["fr", "pt-BR", "c++", "C#", "", None])
def test_a_language_is_a_code_or_a_name(value):
    set_language(value)


@pytest.mark.parametrize("value", ["two words", "x" * 41, "fr\n", "<script>", "é"])
def test_what_is_no_language_is_refused(value):
    with pytest.raises(InvalidArgument, match=r"x-anthesis-language=.* is not allowed; send a language's code"):
        set_language(value)
