import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.registry import deployments
from services.registry.alias_changes import NewChange
from services.registry.deployments import chosen
from services.registry.pages import PageRequest
from services.registry.tables import Worker

WORKERS = st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=10)


def having(version, state="READY", **changes):
    return {"version": version, "state": state, "error": "", "max_sequence_tokens": 2048, "load": 0} | changes


async def beat(registry, worker="w1", models=()):
    return [v.name for v in await registry.deployments.heartbeat(worker, f"{worker}:50052", "cpu", list(models))]


async def statuses(registry):
    return (await registry.deployments.list_deployments(PageRequest())).rows


async def test_a_worker_learns_from_its_heartbeat_what_it_should_have(registry):
    await registry.add_version()
    assert await beat(registry) == []
    await registry.deployments.create("garden", "seedling@1", 0)
    assert await beat(registry) == ["seedling@1"]


async def test_moving_the_alias_moves_the_deployment(registry):
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    await registry.deployments.create("garden", "flower", 0)
    await registry.add_version()
    assert await beat(registry) == ["seedling@1"]
    await registry.set_alias("flower", "seedling@2")
    assert await beat(registry) == ["seedling@2"]


async def follow(registry, *workers):
    """A deployment that follows alias `flower`, which its workers serve at seedling@1; then the alias moves to @2."""
    await registry.add_version()
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    await registry.deployments.create("garden", "flower", 0)
    for worker in workers:
        await beat(registry, worker, [having("seedling@1")])
    await registry.set_alias("flower", "seedling@2")


async def routed(registry):
    version, ready = await registry.deployments.route("flower")
    return version.name, [item.worker.id for item in ready]


async def test_calls_get_the_version_before_until_every_worker_has_the_new_one(registry):
    await follow(registry, "w1", "w2")
    one, two = having("seedling@1"), having("seedling@2")
    for worker in ("w1", "w2"):
        assert await beat(registry, worker, [one, having("seedling@2", "LOADING")]) == ["seedling@2", "seedling@1"]
    assert await routed(registry) == ("seedling@1", ["w1", "w2"])
    assert await beat(registry, "w1", [one, two]) == ["seedling@2", "seedling@1"]
    assert await routed(registry) == ("seedling@1", ["w1", "w2"])
    [status] = await statuses(registry)
    assert (status.version, status.serving, status.ready_replicas) == ("seedling@2", "seedling@1", 1)
    assert await beat(registry, "w2", [one, two]) == ["seedling@2"]  # which lets it unload the other
    assert await routed(registry) == ("seedling@2", ["w1", "w2"])
    assert [status.serving for status in await statuses(registry)] == ["seedling@2"]


async def test_what_no_worker_can_load_is_never_served(registry):
    await follow(registry, "w1")
    failed = having("seedling@2", "FAILED", error="no memory")
    assert await beat(registry, "w1", [having("seedling@1"), failed]) == ["seedling@2", "seedling@1"]
    assert await routed(registry) == ("seedling@1", ["w1"])
    assert [status.errors for status in await statuses(registry)] == [["w1: no memory"]]
    await registry.set_alias("flower", "seedling@1")
    assert await beat(registry, "w1", [having("seedling@1"), failed]) == ["seedling@1"]


async def test_a_worker_that_dies_while_it_loads_holds_nothing_up(registry):
    await follow(registry, "w1", "w2")
    registry.clock.advance(10)  # w2 is silent
    await beat(registry, "w1", [having("seedling@1"), having("seedling@2")])
    assert await routed(registry) == ("seedling@2", ["w1"])


async def test_a_worker_that_comes_later_does_not_lead_back(registry):
    await follow(registry, "w1")
    await beat(registry, "w1", [having("seedling@1"), having("seedling@2")])
    assert await beat(registry, "w2", [having("seedling@1")]) == ["seedling@2"]
    assert await routed(registry) == ("seedling@2", ["w1"])


async def test_where_nobody_has_the_version_before_there_is_nothing_to_keep(registry):
    await follow(registry, "w1")
    assert await beat(registry, "w1", [having("seedling@2", "LOADING")]) == ["seedling@2"]
    assert await routed(registry) == ("seedling@2", [])


async def test_what_is_still_served_is_not_deleted(registry):
    await follow(registry, "w1")
    with pytest.raises(FailedPrecondition, match="'seedling@1' is needed by deployment 'garden'"):
        await registry.deletions.delete_version("seedling@1", "ada")
    await beat(registry, "w1", [having("seedling@1"), having("seedling@2")])
    await registry.deletions.delete_version("seedling@1", "ada")
    assert await beat(registry, "w1", [having("seedling@2")]) == ["seedling@2"]


async def test_an_alias_that_nothing_follows_leads_where_it_points(registry):
    await registry.add_version()
    await registry.add_version()
    await registry.deployments.create("old", "seedling@1", 0)
    await beat(registry, "w1", [having("seedling@1")])
    await registry.set_alias("flower", "seedling@2")
    assert await routed(registry) == ("seedling@2", [])


async def test_a_models_name_is_deployed_as_its_newest_version_and_stays_that(registry):
    await registry.add_version()
    assert (await registry.deployments.create("garden", "seedling", 0)).deployment.target == "seedling@1"
    await registry.add_version()
    assert await beat(registry) == ["seedling@1"]


async def test_only_live_workers_that_report_ready_get_calls(registry):
    await registry.add_version()
    await beat(registry, "w1", [having("seedling@1", load=3)])
    await beat(registry, "w2", [having("seedling@1", "LOADING")])
    await beat(registry, "w3", [having("seedling@2")])
    _, ready = await registry.deployments.route("seedling@1")
    assert [(item.worker.id, item.worker.address, item.max_sequence_tokens, item.load) for item in ready] == [
        ("w1", "w1:50052", 2048, 3)
    ]
    registry.clock.advance(10)
    assert (await registry.deployments.route("seedling@1"))[1] == []


async def test_a_deployment_tells_how_many_have_it_and_who_could_not(registry):
    await registry.add_version()
    await registry.deployments.create("garden", "seedling", 0)
    await beat(registry, "w1", [having("seedling@1")])
    await beat(registry, "w2", [having("seedling@1", "FAILED", error="no memory")])
    [status] = await statuses(registry)
    assert (status.version, status.ready_replicas, status.errors) == ("seedling@1", 1, ["w2: no memory"])


async def test_replicas_are_spread_over_as_many_live_workers(registry):
    await registry.add_version()
    await registry.deployments.create("garden", "seedling", 2)
    workers = ("w1", "w2", "w3")
    for worker in workers:
        await beat(registry, worker)
    having_it = [worker for worker in workers if await beat(registry, worker)]
    assert len(having_it) == 2
    registry.clock.advance(10)  # all are silent; one of those chosen does not come back
    survivors = [worker for worker in workers if worker != having_it[0]]
    for worker in survivors:
        await beat(registry, worker)
    assert [worker for worker in survivors if await beat(registry, worker)] == survivors


async def test_creating_a_deployment_again_sets_its_replicas(registry):
    await registry.add_version()
    await registry.deployments.create("garden", "seedling@1", 0)
    await registry.deployments.create("garden", "seedling@1", 3)
    assert [status.deployment.replicas for status in await statuses(registry)] == [3]


async def test_a_deployment_keeps_its_target(registry):
    await registry.add_version()
    await registry.add_version()
    await registry.deployments.create("garden", "seedling@1", 0)
    with pytest.raises(AlreadyExists, match="exists with target 'seedling@1', not 'seedling@2'; delete it first"):
        await registry.deployments.create("garden", "seedling@2", 0)


async def test_a_deleted_deployment_is_assigned_no_more(registry):
    await registry.add_version()
    await registry.deployments.create("garden", "seedling", 0)
    await registry.deployments.delete("garden")
    assert await beat(registry) == []
    with pytest.raises(NotFound, match="no deployment 'garden'"):
        await registry.deployments.delete("garden")


async def test_what_does_not_exist_cannot_be_deployed(registry):
    with pytest.raises(NotFound, match="no model, version or alias 'tulip'"):
        await registry.deployments.create("garden", "tulip", 0)


async def test_a_heartbeat_that_says_nothing_useful_is_refused(registry):
    with pytest.raises(InvalidArgument, match="worker_id is empty"):
        await registry.deployments.heartbeat("", "a:1", "cpu", [])
    with pytest.raises(InvalidArgument, match="state 'SLEEPY' of a model is not known"):
        await beat(registry, "w1", [having("seedling@1", "SLEEPY")])


async def test_workers_that_died_long_ago_are_forgotten(registry):
    await beat(registry, "w1")
    registry.clock.advance(7200)
    await beat(registry, "w2")
    registry.clock.advance(-7200)
    async with registry.database.read() as session:
        assert list(await session.scalars(select(Worker.id))) == ["w2"]


@given(WORKERS, st.integers(1, 12))
def test_as_many_workers_are_chosen_as_there_should_be_replicas(workers, replicas):
    assert len(chosen("garden", replicas, workers)) == min(replicas, len(workers))
    assert chosen("garden", 0, workers) == set(workers)


@given(WORKERS, st.integers(1, 12), st.data())
def test_a_worker_that_leaves_moves_only_what_it_had(workers, replicas, data):
    before = chosen("garden", replicas, workers)
    gone = data.draw(st.sampled_from(workers))
    after = chosen("garden", replicas, [worker for worker in workers if worker != gone])
    assert before - {gone} <= after
    assert len(after - before) <= 1


async def test_a_list_leaves_out_what_is_deleted_while_it_is_read(registry, monkeypatch):
    await follow(registry, "w1")
    await registry.deployments.create("border", "seedling@1", 0)
    live_workers = deployments._live_workers

    async def delete_meanwhile(*args):
        await registry.deployments.delete("garden")
        await registry.aliases.delete("flower", NewChange(principal="ada"))
        return await live_workers(*args)

    monkeypatch.setattr(deployments, "_live_workers", delete_meanwhile)
    assert [status.deployment.name for status in await statuses(registry)] == ["border"]
