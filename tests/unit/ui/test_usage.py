"""The usage page over a real registry, to which a gateway has reported."""

import pytest
from anthesis import Client, Settings
from anthesis.channel import open_channel
from anthesis.v1.project_pb2 import ReportUsageRequest, UsageRecord
from anthesis.v1.project_pb2_grpc import ProjectServiceStub
from anthesis.v1.registry_pb2 import ROLE_USER

from tests.unit.ui.conftest import html, words
from ui.platform import connect


def used(model: str, language: str, requests: int, prompt: int, completion: int) -> UsageRecord:
    return UsageRecord(
        principal="ada",
        model_version=model,
        language=language,
        requests=requests,
        prompt_tokens=prompt,
        completion_tokens=completion,
    )


@pytest.fixture
def reported(stage):
    key = stage.platform.read_key("gateway", {})
    usage = [used("seedling@1", "fr", 2, 10, 20), used("seedling@1", "", 1, 5, 5), used("sprout@1", "fr", 4, 1000, 2)]
    with open_channel(stage.platform.registry_address, key) as channel:
        ProjectServiceStub(channel).ReportUsage(ReportUsageRequest(batch_id="one", usage=usage))
    return stage


def test_without_usage_the_page_says_where_to_begin(stage):
    app = stage.open("usage")
    assert not app.exception
    assert "Nothing was asked yet" in words(app)


def test_requests_and_tokens_are_added_up_by_what_is_chosen(reported):
    app = reported.open("usage")
    assert not app.exception
    for figure in ("7", "1,015", "27"):
        assert f">{figure}<" in html(app)
    table = app.dataframe[0].value
    assert table.to_dict("list") == {
        "Model": ["sprout@1", "seedling@1"],
        "Requests": [4, 3],
        "Prompt tokens": [1000, 15],
        "Completion tokens": [2, 25],
    }
    app.selectbox(key="usage_by").set_value("Language").run()
    assert app.dataframe[0].value.to_dict("list")["Language"] == ["fr", "not stated"]


def test_a_key_that_may_not_see_it_is_told_so(reported, monkeypatch):
    made = reported.client.keys.create("eve", ROLE_USER)
    monkeypatch.setenv("ANTHESIS_API_KEY", made.secret)
    connect.clear()
    with Client(Settings.from_env()):
        app = reported.open("usage")
    assert "This key may not do that" in words(app)
