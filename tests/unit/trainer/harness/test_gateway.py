import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure
from services.trainer.harness.__main__ import limit_hub
from services.trainer.harness.gateway import Gateway, headers_for, wait_until_served
from services.trainer.harness.measure import ask
from services.trainer.harness.rows import tasks_of_rows
from services.trainer.harness.spec import HarnessSpec
from tests.support.harness import known_task, spec_of, task_of_rows
from tests.support.tokenizers import small_tokenizer_json


@contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Something on loopback that gives one answer after another, and the headers of what it was sent."""
    left, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = left.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


REFUSAL = json.dumps({"error": {"message": "seedling@1 is not loaded by any worker"}}).encode()


def test_a_version_that_is_being_loaded_is_waited_for():
    with answering((503, REFUSAL), (200, b"{}")) as (url, seen):
        wait_until_served(url, "seedling@1", {"Authorization": "Bearer k"}, patience_s=60)
    assert [headers["Authorization"] for headers in seen] == ["Bearer k"] * 2


def test_a_version_that_is_not_served_fails_the_job_with_what_the_gateway_said():
    for answer, reason in (((503, REFUSAL), "not loaded by any worker"), ((502, b"<html>"), "JSONDecodeError")):
        with answering(answer) as (url, _), pytest.raises(JobFailure, match=reason) as caught:
            wait_until_served(url, "seedling@1", {}, patience_s=0)
        assert caught.value.code == "NOT_SERVED"
        assert caught.value.message.endswith("deploy it first: `anthesis deploy seedling@1`")


def test_a_gateway_that_is_not_there_fails_the_job():
    with pytest.raises(JobFailure, match=r"the gateway at http://127\.0\.0\.1:1 does not serve seedling@1: Connection"):
        wait_until_served("http://127.0.0.1:1", "seedling@1", {}, patience_s=0)


def test_a_gateway_that_refuses_what_the_harness_asks_fails_the_job(tmp_path, artifacts, monkeypatch):
    monkeypatch.setattr("services.trainer.harness.gateway.ATTEMPTS", 1)
    encoder = Encoder(artifacts.local_path(artifacts.write_bytes(small_tokenizer_json().encode())))
    task = task_of_rows(artifacts)
    with answering((400, REFUSAL), *[(200, b"{}")] * 9) as (url, _):
        spec = spec_of(tmp_path, task, gateway_url=url)
        asked = [(language, "quiz", one) for language, one in tasks_of_rows(spec, task, artifacts).items()]
        with pytest.raises(JobFailure, match="stopped answering for seedling@1: ClientResponseError: 400") as caught:
            ask(spec, asked, Gateway(spec, {}, encoder, lambda *_: None))
    assert caught.value.code == "GATEWAY_ERROR"


def test_a_job_asks_for_its_project(tmp_path):
    assert "x-anthesis-project" not in headers_for(spec_of(tmp_path), "k")
    assert headers_for(spec_of(tmp_path, project="lab"), "k")["x-anthesis-project"] == "lab"


def test_the_hub_is_asked_only_for_data_of_the_harnesss_tasks_and_never_with_the_workers_token(tmp_path, artifacts):
    for task, is_offline in ((task_of_rows(artifacts), True), (known_task("xcopa_et"), False)):
        env = {"HF_TOKEN": "secret"}
        limit_hub(spec_of(tmp_path, task), env)
        assert ("HF_HUB_OFFLINE" in env, "HF_DATASETS_OFFLINE" in env) == (is_offline, is_offline)
        assert "HF_TOKEN" not in env
        assert env["HF_EVALUATE_OFFLINE"] == env["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
        assert env["HF_HOME"] == str(tmp_path / "cache" / "huggingface")


def test_a_spec_is_read_as_it_was_written(tmp_path, artifacts):
    spec = spec_of(tmp_path, task_of_rows(artifacts), known_task("xcopa_et", "et"))
    spec.save(tmp_path / "evaluation.json")
    assert HarnessSpec.load(tmp_path / "evaluation.json") == spec
