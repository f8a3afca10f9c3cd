"""Projects over the running servers: what the gateway and the tokenizer answer, and who may say for whom it calls."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import httpx
import pytest
import pytest_asyncio
from anthesis import AsyncClient, Settings
from anthesis.errors import NotFoundError, PermissionDeniedError, UnauthenticatedError
from anthesis.v1 import job_pb2
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from services.common.auth import PROJECT_HEADER
from tests.support.access_matrix import Doors, open_doors
from tests.support.projects import Belongings, fill_project, make_project

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, kw_only=True)
class Platform:
    doors: Doors
    keys: dict[str, dict[str, str]]  # project -> role -> secret
    lab: Belongings

    def settings(self, secret: str) -> Settings:
        return Settings(api_key=secret, **{f"{name}_address": at for name, at in self.doors.addresses.items()})

    def client(self, project: str, role: str = "trainer") -> AsyncClient:
        return AsyncClient(self.settings(self.keys[project][role]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with open_doors(tmp_path_factory.mktemp("data")) as doors:
        keys = {name: await make_project(doors.registry, name) for name in ("lab", "neighbour")}
        made = Platform(doors=doors, keys=keys, lab=None)  # type: ignore[arg-type]
        lab = await fill_project(doors.registry, made.settings(keys["lab"]["admin"]), "lab", doors.http_url)
        yield Platform(doors=doors, keys=keys, lab=lab)


async def test_the_gateway_lists_and_finds_a_projects_models_for_it_alone(platform: Platform) -> None:
    async def models(secret: str) -> tuple[set[str], list[int]]:
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(base_url=platform.doors.http_url, headers=headers) as http:
            listed = (await http.get("/v1/models")).json()["data"]
            names = (platform.lab.alias, platform.lab.model, platform.lab.version)
            found = [(await http.get(f"/v1/models/{name}")).status_code for name in names]
            return {model["id"] for model in listed}, found

    # The lab first: what the gateway remembers of its answers must not serve the others.
    admin = str(platform.doors.headers["admin"]).removeprefix("Bearer ")
    for secret in (platform.keys["lab"]["user"], admin):
        assert await models(secret) == ({platform.lab.alias, platform.lab.model, "lab-spare"}, [200, 200, 200])
    assert await models(platform.keys["neighbour"]["user"]) == (set(), [404, 404, 404])


async def test_a_project_trains_a_tokenizer_on_its_rows_and_uses_it(platform: Platform) -> None:
    async with platform.client("lab") as lab, platform.client("neighbour") as neighbour:
        with pytest.raises(NotFoundError, match="no artifact"):
            await neighbour.tokenizers.train([platform.lab.dataset_digest], vocab_size=512)
        trained = await lab.tokenizers.train([platform.lab.dataset_digest], vocab_size=512)
        spec = job_pb2.PretrainSpec(
            output_model="lab-new",
            tokenizer_digest=trained.tokenizer_digest,
            datasets=[platform.lab.dataset],
            config='{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 0}',
            options=job_pb2.TrainOptions(steps=1),
        )
        assert (await lab.jobs.create(spec)).project == "lab"
        with pytest.raises(NotFoundError, match=f"no artifact {trained.tokenizer_digest}"):
            await neighbour.artifacts.get(trained.tokenizer_digest)


async def test_knowing_a_digest_gives_nothing(platform: Platform) -> None:
    digest = platform.lab.dataset_digest
    async with platform.client("neighbour") as neighbour:
        for asked in (
            neighbour.artifacts.get(digest),
            neighbour.artifacts.read(digest),
            neighbour.datasets.create("copied", digest, pb.DATASET_FORMAT_TEXT),
            anext(neighbour.artifacts.verify([digest])),
        ):
            with pytest.raises(NotFoundError, match=f"no artifact {digest} in the store; upload it first"):
                await asked


async def test_a_service_alone_says_for_which_project_it_calls(platform: Platform) -> None:
    request = pb.GetModelRequest(name=platform.lab.model)
    registry = platform.doors.registry

    async def ask(key: str, project: str) -> str:
        async with grpc.aio.insecure_channel(registry.address) as channel:
            metadata = (("authorization", f"Bearer {key}"), (PROJECT_HEADER, project))
            try:
                return (await RegistryServiceStub(channel).GetModel(request, metadata=metadata)).model.project
            except grpc.aio.AioRpcError as error:
                return error.code().name

    assert await ask(registry.keys["gateway"], "lab") == "lab"
    assert await ask(registry.keys["gateway"], "neighbour") == "NOT_FOUND"
    assert await ask(platform.keys["neighbour"]["admin"], "lab") == "NOT_FOUND"
    assert await ask(platform.keys["lab"]["admin"], "neighbour") == "lab"
    assert await ask(registry.keys["admin"], "neighbour") == "lab"  # the platform's admin sees all


async def test_what_is_the_whole_platforms_is_refused_to_a_projects_admin(platform: Platform) -> None:
    async with platform.client("lab", "admin") as lab:
        for refused in (
            anext(lab.artifacts.collect_garbage(delete=True)),
            anext(lab.artifacts.verify(all=True)),
            lab.licences.create("house", name="House rules", text="Be kind.", must_accept=False),
            lab.projects.create("mine"),
            lab.projects.update("lab", archived=False),
            lab.worker_status(),
        ):
            with pytest.raises(PermissionDeniedError, match="in project 'lab'"):
                await refused


async def test_archiving_ends_a_projects_keys(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.registry.keys.CACHE_S", 0.0)
    secret = (await make_project(platform.doors.registry, "closed"))["viewer"]
    admin = platform.settings(platform.doors.registry.keys["admin"])
    async with AsyncClient(platform.settings(secret)) as closed, AsyncClient(admin) as operator:
        assert [project.name for project in await closed.projects.list()] == ["closed"]
        await operator.projects.update("closed", archived=True)
        assert (await operator.projects.get("closed")).archive_time.seconds
        with pytest.raises(UnauthenticatedError, match="of project 'closed', which is archived"):
            await closed.projects.list()
    async with platform.client("lab", "viewer") as lab:
        assert [project.name for project in await lab.projects.list()] == ["lab"]
        with pytest.raises(NotFoundError):
            await lab.projects.get("closed")
