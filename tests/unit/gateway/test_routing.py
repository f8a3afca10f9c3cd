"""The least loaded worker is asked, another one when it is down, and no one when the request is at fault."""

from collections import Counter

import pytest

from services.common.errors import InvalidArgument, NotFound, Unavailable
from services.gateway.registry_client import ResolvedModel, Worker
from services.gateway.routing import Router


class Registry:
    """Stands for RegistryClient: routing needs nothing of it but an answer."""

    async def resolve(self, name: str) -> ResolvedModel:
        raise NotFound(f"no model {name!r}")


def model_on(*loads: int) -> ResolvedModel:
    workers = tuple(Worker(f"w{number}", f"host{number}:1", 128, load) for number, load in enumerate(loads))
    return ResolvedModel("demo@1", "sha256:" + "0" * 64, 0, workers)


@pytest.fixture
def router() -> Router:
    return Router(Registry(), ttl_s=1.0)  # type: ignore[arg-type]


async def test_the_least_loaded_worker_is_asked(router: Router) -> None:
    asked = []

    async def use(worker: Worker) -> None:
        asked.append(worker.id)

    await router.call(model_on(5, 2, 9), use)
    assert asked == ["w1"]


async def test_requests_between_two_heartbeats_spread_over_the_workers(router: Router) -> None:
    model, asked = model_on(0, 0, 3), Counter[str]()

    async def use(worker: Worker) -> None:
        asked[worker.id] += 1

    for _ in range(9):
        await router.call(model, use)
    assert asked == {"w0": 4, "w1": 4, "w2": 1}


@pytest.mark.parametrize("error", [Unavailable("it is down"), NotFound("not loaded here")])
async def test_another_worker_is_asked_when_one_is_down_or_has_unloaded_it(router: Router, error: Exception) -> None:
    async def use(worker: Worker) -> str:
        if worker.id == "w1":
            raise error
        return worker.id

    assert await router.call(model_on(5, 2), use) == "w0"


async def test_the_last_workers_error_is_told_when_all_are_down(router: Router) -> None:
    async def use(worker: Worker) -> str:
        raise Unavailable(f"{worker.id} is down")

    with pytest.raises(Unavailable, match="w0 is down"):
        await router.call(model_on(5, 2), use)


async def test_an_error_of_the_request_is_not_tried_elsewhere(router: Router) -> None:
    asked = []

    async def use(worker: Worker) -> None:
        asked.append(worker.id)
        raise InvalidArgument("temperature")

    with pytest.raises(InvalidArgument):
        await router.call(model_on(5, 2), use)
    assert asked == ["w1"]


async def test_a_version_on_no_worker_says_how_to_deploy_it(router: Router) -> None:
    async def use(worker: Worker) -> None:
        raise AssertionError

    with pytest.raises(Unavailable, match=r"demo@1 is not loaded by any worker; deploy it \(`anthesis deploy demo@1`"):
        await router.call(model_on(), use)
