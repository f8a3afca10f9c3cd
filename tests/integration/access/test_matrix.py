"""Who may call what, as the servers answer it. docs/access.md shows this table; after a change that is meant,
`ANTHESIS_WRITE_DOCS=1 pytest tests/integration/access/test_matrix.py` writes it there.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from services.common.access import PLATFORM_ONLY, Permission, roles_with
from services.common.settings import ROOT
from services.registry import access as registry_access
from tests.support.access_matrix import (
    CALLERS,
    OTHER_PROJECT,
    SERVED_BY,
    Doors,
    ask_grpc,
    make_keys,
    measure,
    open_doors,
    render,
    services,
)
from tests.support.project_matrix import measure_projects
from tests.support.registry_data import fresh_database
from tests.support.registry_server import running_registry

pytestmark = pytest.mark.asyncio(loop_scope="module")
PAGE = ROOT / "docs" / "access.md"
START, END = "<!-- matrix: written by tests/integration/access/test_matrix.py -->\n", "<!-- end of the matrix -->\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path_factory.mktemp("data")) as opened:
        yield opened


async def test_the_servers_answer_as_the_documented_matrix_says(doors: Doors) -> None:
    rows = await measure(doors)
    others, own = await measure_projects(doors, services(), SERVED_BY)
    for name, _, answers in rows:
        if name.strip("`") in others:
            answers[OTHER_PROJECT] = others[name.strip("`")]
    table = render(rows) + "\n"
    print(f"\n{table}")
    before, _, rest = PAGE.read_text().partition(START)
    documented, _, after = rest.partition(END)
    if os.environ.get("ANTHESIS_WRITE_DOCS"):
        PAGE.write_text(before + START + table + END + after)
    else:
        assert documented == table, f"{PAGE} and the servers differ; see the head of this file"
    for name, needs, answers in rows:
        refused = "yes" if needs == "–" else "401"
        assert {answers[caller] for caller in CALLERS[:5]} == {refused}, name
        if needs in [*Permission]:
            allowed = {role for role in CALLERS[5:] if answers[role] == "yes"}
            assert allowed == set(roles_with(Permission(needs))), name
        if answer := answers.get(OTHER_PROJECT):
            allowed = {"403"} if needs in PLATFORM_ONLY else {"404", "409"}  # 409: a name is taken; no more is told
            assert answer in allowed, name
            assert answer != "404" or own[name.strip("`")] == "yes", f"{name} is 404 for its own admin, too"


async def test_a_role_that_may_too_much_is_seen(tmp_path: Path, monkeypatch) -> None:
    """The planted mistake: an admin's RPC in the table as a read."""
    monkeypatch.setitem(registry_access.REGISTRY, "RevokeApiKey", Permission.READ)  # type: ignore[arg-type]
    url = await asyncio.to_thread(fresh_database, "sqlite", tmp_path)
    async with running_registry(data_dir=tmp_path, database_url=url) as wrong:
        headers = await make_keys(wrong)
        async with grpc.aio.insecure_channel(wrong.address) as channel:
            answers = await ask_grpc(headers, channel, "/anthesis.v1.RegistryService/RevokeApiKey", (False, False))
    line = render([("`RegistryService.RevokeApiKey`", Permission.ADMIN, answers)]).splitlines()[-1]
    assert answers["viewer"] == "yes"
    assert "`RegistryService.RevokeApiKey`" in PAGE.read_text()
    assert line not in PAGE.read_text()


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "bearer", "Token x"])
async def test_a_header_that_carries_no_key_is_told_what_to_send(doors: Doors, header: str) -> None:
    async with grpc.aio.insecure_channel(doors.registry.address) as channel:
        call = channel.unary_unary("/anthesis.v1.RegistryService/ListModels")
        with pytest.raises(grpc.aio.AioRpcError, match="send `authorization: Bearer <key>`") as refused:
            await call(b"", metadata=(("authorization", header),))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
