"""Webhooks against a real receiver, on both databases."""

import asyncio
import json
import socket
from dataclasses import replace

import openai
import pytest
from sqlalchemy import select

from services.common.auth import Principal
from services.common.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from services.registry.leases import Failed, Succeeded
from services.registry.pages import PageRequest
from services.registry.tables import Base, StateChange, WebhookDelivery
from services.registry.webhooks import addresses, sender
from services.registry.webhooks.addresses import AddressPolicy
from services.registry.webhooks.config import SenderConfig
from services.registry.webhooks.sender import Sender
from services.registry.webhooks.service import MAX_WEBHOOKS, Webhooks
from tests.support.registry_data import store_checkpoint
from tests.support.webhook_receiver import running_receiver

PEPPER = b"pepper"
ADA, BOB = Principal("key-a", "ada", "trainer"), Principal("key-b", "bob", "trainer")
ADMIN = Principal("key-c", "root", "admin")
POLICY = AddressPolicy(frozenset({"127.0.0.1"}))
CONFIG = SenderConfig(pepper=PEPPER, policy=POLICY, timeout_s=5.0, max_attempts=4)
ALL = PageRequest()


@pytest.fixture
async def receiver():
    async with running_receiver() as running:
        yield running


@pytest.fixture
def webhooks(registry):
    return Webhooks(registry.database, PEPPER, POLICY, registry.clock)


async def send(registry, config=CONFIG):
    """One round of a sender that has just been started."""
    started = Sender(registry.database, config, registry.clock)
    await started.step()
    await started.settle()


async def send_all(registry, config=CONFIG):
    """Rounds until nothing is due."""
    for _ in range(50):
        before = await due(registry)
        await send(registry, config)
        if not before and not await due(registry):
            return
    raise AssertionError("deliveries do not end")


async def due(registry):
    async with registry.database.read() as session:
        rows = list(await session.scalars(select(WebhookDelivery).where(WebhookDelivery.state == "PENDING")))
        changes = list(await session.scalars(select(StateChange)))
    return len([row for row in rows if row.next_time <= registry.clock()]) + len(changes)


async def deliveries(webhooks, webhook, by=ADA):
    """Oldest first."""
    return (await webhooks.list_deliveries(by, webhook.id, ALL)).rows[::-1]


def verified(request, secret):
    """The event in a request, its signature checked by OpenAI's client, which follows the specification, too."""
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    client.webhooks.verify_signature(request.body.decode(), request.headers, tolerance=10**9)  # the tests' clock
    return json.loads(request.body)


async def test_each_change_of_state_is_delivered_once_in_order_and_signed(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), [])
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    await send_all(registry)
    events = [verified(request, made.secret) for request in receiver.received]
    assert [event["type"] for event in events] == ["job.pending", "job.running", "job.succeeded"]
    assert events[2] == {
        "type": "job.succeeded",
        "timestamp": "2026-01-01T00:00:00+00:00",
        "data": {
            "job_id": job.id,
            "state": "SUCCEEDED",
            "sequence": 4,
            "output_model": "sprout",
            "created_by": "ada",
            "model_version": "sprout@1",
        },
    }
    assert "model_version" not in events[0]["data"]
    found = await deliveries(webhooks, made.webhook)
    assert [(row.state, row.attempts, row.status_code, row.error) for row in found] == [("DELIVERED", 1, 204, "")] * 3
    assert [row.id for row in found] == [request.headers["webhook-id"] for request in receiver.received]


async def test_a_changed_body_a_wrong_secret_and_another_id_are_noticed(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), [])
    other = await webhooks.create(ADA, receiver.url("/other"), [])
    await registry.submit()
    await send_all(registry)
    request = next(request for request in receiver.received if request.path == "/hook")
    assert verified(request, made.secret)
    for wrong, secret in (
        (request, other.secret),
        (replace(request, body=request.body + b" "), made.secret),
        (replace(request, headers={**request.headers, "webhook-id": "msg-0"}), made.secret),
        (replace(request, headers={**request.headers, "webhook-timestamp": "1"}), made.secret),
    ):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            verified(wrong, secret)


async def test_a_failure_says_why_and_only_what_was_asked_for_is_sent_and_to_nobody_else(registry, webhooks, receiver):
    await webhooks.create(ADA, receiver.url("/ada"), ["job.failed"])
    await webhooks.create(BOB, receiver.url("/bob"), [])
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.finish(job.id, 1, Failed("OUT_OF_MEMORY", "lower micro_batch", "micro_batch"))
    await send_all(registry)
    assert receiver.paths() == ["/ada"]
    data = json.loads(receiver.received[0].body)["data"]
    assert data["error"] == {"code": "OUT_OF_MEMORY", "message": "lower micro_batch", "parameter": "micro_batch"}


async def test_what_did_not_happen_is_told_to_nobody(registry, webhooks, receiver):
    """The outbox is written in the transaction of the change: what is undone leaves nothing in it."""
    await webhooks.create(ADA, receiver.url(), ["job.failed", "job.paused"])
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    with pytest.raises(Aborted):
        await registry.leases.finish(job.id, 7, Failed("RANK_DIED", "no"))
    with pytest.raises(FailedPrecondition):
        await registry.control.resume(job.id)
    await send_all(registry)
    assert receiver.received == []


async def test_a_receiver_that_fails_is_tried_again_ever_later_and_given_up_at_last(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), ["job.pending"])
    receiver.answers["/hook"] = [500, 404, 302, 503]
    await registry.submit()
    pauses = []
    for _ in range(3):
        await send_all(registry)
        [row] = await deliveries(webhooks, made.webhook)
        pauses.append((row.next_time - registry.clock()).total_seconds())
        registry.clock.advance(pauses[-1] - 0.001)
        await send(registry)
        assert (await deliveries(webhooks, made.webhook))[0].attempts == row.attempts, "before its time"
        registry.clock.advance(0.01)
    await send_all(registry)
    [row] = await deliveries(webhooks, made.webhook)
    assert (row.state, row.attempts, row.status_code) == ("FAILED", 4, 503)
    assert row.error == "the receiver answered 503"
    for pause, whole in zip(pauses, (5, 20, 80), strict=True):
        assert whole / 2 <= pause <= whole
    assert receiver.paths() == ["/hook"] * 4, "a redirect was followed"
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1


async def test_a_receiver_that_wants_no_more_of_it_is_not_asked_again(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), ["job.pending"])
    receiver.answers["/hook"] = [410]
    await registry.submit()
    await send_all(registry)
    [row] = await deliveries(webhooks, made.webhook)
    assert (row.state, row.attempts, row.status_code) == ("FAILED", 1, 410)


async def test_one_that_never_answers_holds_up_no_other(registry, webhooks, receiver):
    silent = await webhooks.create(ADA, receiver.url("/silent"), [])
    await webhooks.create(ADA, receiver.url("/quick"), [])
    receiver.silent.add("/silent")
    job = await registry.submit()
    await registry.jobs.cancel(job.id)
    started = Sender(registry.database, replace(CONFIG, timeout_s=1.5), registry.clock)
    while receiver.paths().count("/quick") < 2:
        await started.step()
        await asyncio.sleep(0.01)
    assert receiver.paths().count("/silent") == 1, "one at a time"
    await started.settle()
    first = (await deliveries(webhooks, silent.webhook))[0]
    assert (first.state, first.status_code, first.error) == ("PENDING", None, "no answer within 1.5 s")


async def test_a_sender_that_dies_before_it_knows_the_answer_sends_again_under_the_same_id(
    registry, webhooks, receiver, monkeypatch
):
    made = await webhooks.create(ADA, receiver.url(), ["job.pending"])
    await registry.submit()

    async def die(*_):
        raise ConnectionError("the database is gone")

    with monkeypatch.context() as dying:
        dying.setattr(Sender, "_finish", die)
        await send(registry)
    assert len(receiver.received) == 1
    await send(registry)  # at once it is not known whether the other still sends
    assert len(receiver.received) == 1
    registry.clock.advance(CONFIG.timeout_s + sender.LOST_AFTER_S)
    await send_all(registry)
    assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
    [row] = await deliveries(webhooks, made.webhook)
    assert (row.state, row.attempts, len(receiver.received)) == ("DELIVERED", 2, 2)


async def test_of_two_senders_at_once_one_sends(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), [])
    for _ in range(3):
        await registry.submit()
    senders = [Sender(registry.database, CONFIG, registry.clock) for _ in range(2)]
    for _ in range(6):
        await asyncio.gather(*(started.step() for started in senders), return_exceptions=True)
        await asyncio.gather(*(started.settle() for started in senders))
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert len(ids) == len(set(ids)) == 3
    assert len(await deliveries(webhooks, made.webhook)) == 3


async def test_a_delivery_is_sent_again_by_hand_but_not_while_it_is_being_tried(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), ["job.pending"])
    receiver.answers["/hook"] = [410, 500, 204]
    await registry.submit()
    await send_all(registry)
    [row] = await deliveries(webhooks, made.webhook)
    await webhooks.redeliver(ADA, row.id)
    await send_all(registry)
    with pytest.raises(FailedPrecondition, match=rf"delivery {row.id} is still being tried: attempt 2 is not before"):
        await webhooks.redeliver(ADA, row.id)
    registry.clock.advance(5)
    await send_all(registry)
    [row] = await deliveries(webhooks, made.webhook)
    assert (row.state, row.attempts) == ("DELIVERED", 2)
    assert {request.headers["webhook-id"] for request in receiver.received} == {row.id}


async def test_a_name_that_leads_inside_only_when_it_is_sent_to_is_not_connected(registry, receiver, monkeypatch):
    """DNS rebinding: public when the webhook is made, inside later."""
    answers = ["1.1.1.1"]
    found = socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return found(answers[0] if host == "rebind.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    strict = AddressPolicy()
    webhooks = Webhooks(registry.database, PEPPER, strict, registry.clock)
    made = await webhooks.create(ADA, f"https://rebind.example:{receiver.port}/hook", ["job.pending"])
    await registry.submit()
    answers[0] = "127.0.0.1"
    await send_all(registry, replace(CONFIG, policy=strict))
    [row] = await deliveries(webhooks, made.webhook)
    assert row.status_code is None
    assert "host rebind.example is at 127.0.0.1, which is not public" in row.error
    registry.clock.advance(5)
    monkeypatch.setattr(addresses, "is_public", lambda address: True)  # the planted mistake: it connects
    await send_all(registry, replace(CONFIG, policy=strict))
    [row] = await deliveries(webhooks, made.webhook)
    assert row.attempts == 2
    assert "not public" not in row.error


async def test_a_host_that_an_admin_no_longer_allows_is_not_sent_to(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), ["job.pending"])
    await registry.submit()
    await send_all(registry, replace(CONFIG, policy=AddressPolicy()))
    [row] = await deliveries(webhooks, made.webhook)
    assert "is http" in row.error
    assert receiver.received == []


async def test_what_is_refused_makes_no_webhook(registry, webhooks):
    for url, events, why in (
        ("https://10.0.0.1/hook", [], "10.0.0.1, which is not public"),
        ("http://1.1.1.1/hook", [], "is http"),
        ("https://1.1.1.1/hook", ["job.exploded"], "event type 'job.exploded' is not known; choose from job.cancelled"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            await webhooks.create(ADA, url, events)
    for _ in range(MAX_WEBHOOKS):
        await webhooks.create(ADA, "https://1.1.1.1/hook", [])
    with pytest.raises(ResourceExhausted, match=f"ada has {MAX_WEBHOOKS} webhooks, and {MAX_WEBHOOKS} is the most"):
        await webhooks.create(ADA, "https://1.1.1.1/hook", [])
    assert len((await webhooks.list_webhooks(ADA, ALL)).rows) == MAX_WEBHOOKS
    assert (await webhooks.list_webhooks(BOB, ALL)).rows == []


async def test_others_webhooks_are_for_admins_alone(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), [])
    await registry.submit()
    await send_all(registry)
    [row] = await deliveries(webhooks, made.webhook)
    for call in (
        webhooks.delete(BOB, made.webhook.id),
        webhooks.list_deliveries(BOB, made.webhook.id, ALL),
        webhooks.redeliver(BOB, row.id),
    ):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(PermissionDenied, match="everyone's webhooks are for admins"):
        await webhooks.list_webhooks(BOB, ALL, everyone=True)
    assert [found.id for found in (await webhooks.list_webhooks(ADMIN, ALL, everyone=True)).rows] == [made.webhook.id]
    await webhooks.delete(ADMIN, made.webhook.id)
    assert (await webhooks.list_webhooks(ADA, ALL)).rows == []
    with pytest.raises(NotFound):
        await webhooks.redeliver(ADA, row.id)


async def test_a_secret_is_nowhere_in_the_database_and_no_two_are_alike(registry, webhooks, receiver):
    made = [await webhooks.create(ADA, receiver.url(), []) for _ in range(2)]
    await registry.submit()
    await send_all(registry)
    async with registry.database.read() as session:
        kept = [str(list(await session.execute(select(table)))) for table in Base.metadata.sorted_tables]
    assert made[0].webhook.id in "".join(kept)
    for created in made:
        assert created.secret.startswith("whsec_")
        assert created.secret.removeprefix("whsec_") not in "".join(kept)
    assert made[0].secret != made[1].secret


async def test_old_deliveries_that_are_at_their_end_are_forgotten(registry, webhooks, receiver):
    made = await webhooks.create(ADA, receiver.url(), [])
    await registry.submit()
    await send_all(registry)
    registry.clock.advance(29 * 24 * 3600)
    await send(registry)
    assert len(await deliveries(webhooks, made.webhook)) == 1
    registry.clock.advance(2 * 24 * 3600)
    await send(registry)
    assert await deliveries(webhooks, made.webhook) == []
