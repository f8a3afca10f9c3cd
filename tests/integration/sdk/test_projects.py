"""`anthesis projects`, keys of projects and the client's projects, against a real registry."""

from collections.abc import Callable
from typing import Any

import pytest
from anthesis import Client, Settings
from anthesis.channel import open_channel
from anthesis.errors import NotFoundError, PermissionDeniedError
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.project_pb2 import Quotas, ReportUsageRequest, UsageRecord
from anthesis.v1.project_pb2_grpc import ProjectServiceStub

Run = Callable[..., Any]


def test_a_project_is_made_limited_archived_and_restored(anthesis: Run, anthesis_json: Run) -> None:
    made = anthesis_json("projects", "create", "lab", "--description", "what we try", "--max-jobs", 4)
    anthesis("projects", "set", "lab", "--max-stored-bytes", 1000)

    shown = anthesis_json("projects", "show", "lab")
    lines = anthesis("projects", "show", "lab").stdout.splitlines()
    key = anthesis("keys", "create", "eve", "--role", "admin", "--project", "lab").stdout.strip()
    as_eve = {"ANTHESIS_API_KEY": key}
    anthesis("keys", "create", "bob", **as_eve)

    assert (made["name"], made["description"]) == ("lab", "what we try")
    assert (shown["quotas"]["jobs"], shown["quotas"]["stored_bytes"]) == (4, 1000)
    assert {"jobs: 0 of 4", "stored_bytes: 0 of 1000"} <= set(lines)
    rows = [line.split("\t") for line in anthesis("keys", "list", **as_eve).stdout.splitlines()]
    assert [(row[1], row[-1]) for row in rows] == [("PRINCIPAL", "PROJECT"), ("lab/bob", "lab"), ("lab/eve", "lab")]
    assert anthesis("projects", "list", **as_eve).stdout.splitlines()[1].startswith("lab\t")
    assert "needs the permission 'operate'" in anthesis("projects", "create", "mine", code=1, **as_eve).stderr
    anthesis("projects", "archive", "lab")
    assert anthesis_json("projects", "show", "lab")["archive_time"]
    anthesis("projects", "restore", "lab")
    assert anthesis_json("projects", "show", "lab").get("archive_time") is None
    assert "no project 'nobody'" in anthesis("projects", "show", "nobody", code=1).stderr


def test_the_client_of_a_project_sees_that_alone(client: Client, settings: Settings) -> None:
    client.projects.create("garden", quotas=Quotas(jobs=1))
    secret = client.keys.create("eve", pb.ROLE_TRAINER, project="garden").secret
    client.models.create(pb.Model(name="shared-model", licence="mit"))

    with Client(Settings(api_key=secret, registry_address=settings.registry_address)) as garden:
        made = garden.models.create(pb.Model(name="our-model", licence="mit"))
        names = {model.name for model in garden.models.list()}
        assert [project.name for project in garden.projects.list()] == ["garden"]
        assert garden.projects.get("garden").quotas.jobs == 1
        with pytest.raises(PermissionDeniedError, match="in project 'garden'"):
            garden.projects.update("garden", quotas=Quotas(jobs=0))

    assert made.project == "garden"
    assert {"our-model", "shared-model"} <= names
    assert client.projects.update("garden", quotas=Quotas(jobs=0)).quotas.jobs == 0
    with pytest.raises(NotFoundError):
        client.projects.get("nobody")


def test_usage_is_added_up_as_asked(anthesis: Run, anthesis_json: Run, client: Client, settings: Settings) -> None:
    with open_channel(settings.registry_address, settings.api_key) as channel:  # as a gateway does
        for batch, language in (("a", "fr"), ("b", "sw"), ("b", "sw")):
            used = UsageRecord(
                principal="ada", model_version="seedling@1", language=language, requests=2, prompt_tokens=5
            )
            ProjectServiceStub(channel).ReportUsage(ReportUsageRequest(batch_id=batch, usage=[used]))

    [total] = anthesis_json("usage", "--by", "principal")
    lines = anthesis("usage", "--by", "model", "--by", "language", "--since", "2026-01-01").stdout.splitlines()

    assert total == {"principal": "ada", "requests": 4, "prompt_tokens": 10, "completion_tokens": 0}
    assert lines == [
        "MODEL VERSION\tLANGUAGE\tREQUESTS\tPROMPT TOKENS\tCOMPLETION TOKENS",
        "seedling@1\tfr\t2\t5\t0",
        "seedling@1\tsw\t2\t5\t0",
    ]
    assert anthesis_json("usage", "--until", "2020-01-01") == []
    assert "day 'soon' is not understood; write 2026-11-29" in anthesis("usage", "--since", "soon", code=1).stderr
