"""Projects, their keys, and what becomes of both."""

import pytest

from services.common.access import Permission
from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from services.registry.audit import Audit, AuditQuery
from services.registry.keys import Keys
from services.registry.pages import PageRequest
from services.registry.projects.service import ProjectChange, Projects
from tests.support.projects import calling_for


@pytest.fixture
async def projects(database, clock):
    return Projects(database, clock)


@pytest.fixture
def keys(database, clock):
    return Keys(database, b"pepper", clock)


async def test_a_project_is_made_once_and_found(projects, clock):
    made = await projects.create("lab", "what we try")
    assert (made.name, made.description, made.create_time) == ("lab", "what we try", clock())
    with pytest.raises(AlreadyExists, match="project 'lab' exists already; choose another name"):
        await projects.create("lab")
    with pytest.raises(NotFound, match="no project 'la'; `anthesis projects list` shows what there is"):
        await projects.get("la")
    for name in ("", "a/b", "Lab", "a\nb", "x" * 201):
        with pytest.raises(InvalidArgument, match="project name"):
            await projects.create(name)
    with pytest.raises(InvalidArgument, match="description has 1001 characters; use at most 1000"):
        await projects.create("novel", "x" * 1001)
    assert [row.name for row in (await projects.list_projects(PageRequest())).rows] == ["lab"]


async def test_a_project_sees_itself_alone(projects):
    for name in ("lab", "other"):
        await projects.create(name)
    with calling_for("lab"):
        assert [row.name for row in (await projects.list_projects(PageRequest())).rows] == ["lab"]
        assert (await projects.get("lab")).name == "lab"
        with pytest.raises(NotFound, match="no project 'other'"):
            await projects.get("other")


async def test_an_archived_projects_keys_are_worth_nothing_until_it_is_restored(projects, keys, clock):
    await projects.create("lab")
    _, secret = await keys.create("ada", "user", project="lab")
    assert (await keys.verify(secret)).project == "lab"
    archived = await projects.update("lab", ProjectChange(archived=True))
    first = archived.archive_time
    clock.advance(60)
    assert (await projects.update("lab", ProjectChange(archived=True))).archive_time == first
    with pytest.raises(Unauthenticated, match="of project 'lab', which is archived"):
        await keys.verify(secret)
    with pytest.raises(FailedPrecondition, match="project 'lab' is archived"):
        await keys.create("bob", "user", project="lab")
    await projects.update("lab", ProjectChange(archived=False))
    assert (await keys.verify(secret)).project == "lab"


async def test_a_projects_principals_are_others_than_the_platforms_of_the_same_name(projects, keys):
    for name in ("lab", "other"):
        await projects.create(name)
    made = [await keys.create("ada", "user", project=project) for project in ("", "lab", "other")]
    assert [(await keys.authenticate(secret)).name for _, secret in made] == ["ada", "lab/ada", "other/ada"]
    with pytest.raises(InvalidArgument, match="principal name 'lab/ada' is not allowed"):
        await keys.create("lab/ada", "user")
    with pytest.raises(NotFound, match="no project 'nowhere'"):
        await keys.create("ada", "user", project="nowhere")


async def test_no_key_of_a_project_may_what_is_the_platforms(projects, keys):
    await projects.create("lab")
    _, secret = await keys.create("root", "admin", project="lab")
    assert (await keys.verify(secret)).rights == set(Permission) - {Permission.INTERNAL, Permission.OPERATE}
    with pytest.raises(InvalidArgument, match="role 'service' is not known in a project; choose viewer"):
        await keys.create("gateway", "service", project="lab")
    with pytest.raises(InvalidArgument, match="scope 'operate' is none of role 'admin'; choose from read"):
        await keys.create("root", "admin", scopes=["operate"], project="lab")


async def test_a_projects_admin_makes_sees_and_revokes_keys_of_the_project_alone(projects, keys):
    for name in ("lab", "other"):
        await projects.create(name)
    platforms, _ = await keys.create("root", "admin")
    others, _ = await keys.create("bob", "user", project="other")
    with calling_for("lab", "admin") as admin:
        made, secret = await keys.create("eve", "trainer", by=admin)
        assert (made.project, made.principal) == ("lab", "lab/eve")
        for project in ("other", "nowhere"):
            with pytest.raises(PermissionDenied, match="your key makes keys of project 'lab' alone"):
                await keys.create("eve", "user", project=project, by=admin)
        assert [key.id for key in (await keys.list_keys(PageRequest())).rows] == [made.id]
        for key in (platforms, others):
            with pytest.raises(NotFound, match="no API key"):
                await keys.revoke(key.id)
        await keys.revoke(made.id)
    with pytest.raises(Unauthenticated, match="revoked"):
        await keys.verify(secret)
    assert len((await keys.list_keys(PageRequest())).rows) == 3


async def test_a_projects_admin_sees_the_log_of_the_project(registry, projects, database, clock):
    await projects.create("lab")
    await registry.add_version("shared")
    with calling_for("lab", "admin") as admin:
        await registry.add_version("mine")
        entries = (await Audit(database, clock).list_entries(AuditQuery(), PageRequest())).rows
    assert {(entry.principal, entry.project) for entry in entries} == {(admin.name, "lab")}
    assert "version/mine@1" in {entry.resource for entry in entries}
    assert "project/lab" not in {entry.resource for entry in entries}


async def test_the_log_says_what_becomes_of_a_project(projects, database, clock):
    await projects.create("lab")
    for change in (ProjectChange(archived=True), ProjectChange(archived=True), ProjectChange(archived=False)):
        await projects.update("lab", change)
    entries = (await Audit(database, clock).list_entries(AuditQuery(resource="project/lab"), PageRequest())).rows
    assert [entry.value for entry in entries] == ["open", "archived", "open"]
