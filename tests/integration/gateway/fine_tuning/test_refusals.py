"""Files and fine-tuning jobs that cannot be, in OpenAI's error shapes; nothing of them is kept."""

import asyncio
from typing import Any

import openai
import pytest

from tests.support.gateway_stack import Stack
from tests.support.openai_fine_tuning import TALK, jsonl, submit, upload

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("wrong", "param", "message"),
    [
        ({"model": "nobody"}, "model", "no model, version or alias 'nobody'"),
        ({"training_file": "file-0"}, "training_file", "is no file of yours"),
        ({"training_file": "x" * 10_000}, "training_file", "is no file of yours"),
        ({"validation_file": "file-0"}, "validation_file", "is no file of yours"),
        ({"suffix": "x" * 65}, "suffix", "use at most 64 of a-z"),
        ({"suffix": "a/b"}, "suffix", "use at most 64 of a-z"),
        ({"suffix": "a\nb"}, "suffix", "use at most 64 of a-z"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"method": {"type": "dpo"}}, "method", "method 'dpo' is not supported; use 'supervised'"),
        ({"method": {"type": "supervised", "reinforcement": {}}}, "method", "'reinforcement' is not supported"),
        ({"method": {"type": "other"}}, "method", "method.type='other' is not known"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "not supported"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "choose 'auto', or 1 to 50"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters", "is not allowed"),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "out of range"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", "range"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters", "unrecognized request argument"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "at most 64"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata", "at most 16"),
        ({"n_epochs": 3}, "n_epochs", "unrecognized request argument: n_epochs"),
    ],
)
async def test_a_job_that_cannot_be_is_refused_by_its_parameter_and_nothing_is_made(
    ada, http, wrong: dict[str, Any], param: str, message: str
) -> None:
    file = await upload(ada, TALK)
    before = [job.id async for job in ada.fine_tuning.jobs.list()]
    answer = await http.post("/fine_tuning/jobs", json={"model": "lab/seedling", "training_file": file.id} | wrong)
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (answer.status_code, error["param"]) == (404 if param == "model" else 400, param)
    assert message in error["message"]
    assert [job.id async for job in ada.fine_tuning.jobs.list()] == before


async def test_both_places_of_hyperparameters_and_equal_files_are_refused(ada) -> None:
    file, same = await upload(ada, TALK), await upload(ada, TALK)
    with pytest.raises(openai.BadRequestError, match="has the rows of training_file"):
        await submit(ada, file, validation_file=same.id)
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    with pytest.raises(openai.BadRequestError, match="give them once, in method"):
        await submit(ada, file, method=method, hyperparameters={"n_epochs": 1})


GOOD = ("rows.jsonl", jsonl(TALK))


@pytest.mark.parametrize(
    ("file", "fields", "param", "message"),
    [
        (("a.jsonl", b'{"prompt": "a"\n'), {}, "file", "row 1: not JSON"),
        (("a.jsonl", jsonl(TALK) + b'{"messages": []}'), {}, "file", 'row 2: "messages" is not a list'),
        (("a.jsonl", b'{"prompt": "a", "completion": 3}'), {}, "file", 'row 1: "completion" is a JSON number'),
        (("a.jsonl", b""), {}, "file", "has no rows"),
        (("../../a.jsonl", GOOD[1]), {}, "file", "filename '../../a.jsonl' is not allowed"),
        (("a\\b.jsonl", GOOD[1]), {}, "file", "is not allowed"),
        (("a\u202eb.jsonl", GOOD[1]), {}, "file", "is not allowed"),
        (("x" * 256, GOOD[1]), {}, "file", "is not allowed"),
        (GOOD, {"purpose": "batch"}, "purpose", "purpose is 'batch'; only 'fine-tune' is supported"),
        (GOOD, {"purpose": None}, "purpose", "purpose is missing"),
        (None, {}, "file", "file is missing"),
        (GOOD, {"colour": "red"}, "colour", "unrecognized request argument: colour"),
        (GOOD, {"expires_after[anchor]": "now"}, "expires_after", "use 'created_at'"),
        (GOOD, {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after", "3600 to"),
        (GOOD, {"expires_after[anchor]": "created_at", "expires_after[seconds]": "٣"}, "expires_after", "3600 to"),
    ],
)
async def test_a_file_that_cannot_be_is_refused_by_its_parameter_and_nothing_is_kept(
    ada, http, file: Any, fields: dict[str, Any], param: str, message: str
) -> None:
    before = [found.id async for found in ada.files.list()]
    fields = {name: value for name, value in ({"purpose": "fine-tune"} | fields).items() if value is not None}
    answer = await http.post("/files", data=fields, files={"file": file} if file else {})
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert message in error["message"]
    assert [found.id async for found in ada.files.list()] == before


async def test_a_body_that_is_no_form_is_a_bad_request(http) -> None:
    for kind, body in (("multipart/form-data; boundary=x", b"--y\r\n"), ("multipart/form-data", b""), ("a/b", b"{}")):
        answer = await http.post("/files", content=body, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_file_may_be_longer_than_a_completion_and_comes_back_as_it_was(ada, http) -> None:
    rows = jsonl(*({"inputs": str(number) * 1_000_000, "targets": " b"} for number in range(1, 10)), *[TALK] * 9)
    rows += jsonl(*({"inputs": f"{number}" * 500_000, "targets": " b"} for number in range(10, 20)))
    assert len(rows) > 17 << 20
    file = await ada.files.create(file=("long.jsonl", rows), purpose="fine-tune")
    assert file.bytes == len(rows)
    async with http.stream("GET", f"/files/{file.id}/content") as answer:
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''long.jsonl"
        assert b"".join([chunk async for chunk in answer.aiter_bytes()]) == rows


FORM = (
    b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + jsonl(TALK)
)


async def send(stack: Stack, *headers: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = stack.http_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    fixed = ("host: x", f"authorization: Bearer {stack.ada_key}", "content-type: multipart/form-data; boundary=x")
    writer.write("\r\n".join(["POST /v1/files HTTP/1.1", *fixed, *headers, "", ""]).encode() + body)
    await writer.drain()
    return reader, writer


async def test_an_upload_that_breaks_off_leaves_nothing(stack: Stack, ada) -> None:
    before = [found.id async for found in ada.files.list()]
    stored = {artifact.name for artifact in stack.registry.artifacts.stored()}
    _, writer = await send(stack, "content-length: 100000", body=FORM)
    writer.close()
    await writer.wait_closed()
    file = await upload(ada, TALK, {"inputs": "still", "targets": " here"})
    assert [found.id async for found in ada.files.list()] == [file.id, *before]
    assert len({artifact.name for artifact in stack.registry.artifacts.stored()} - stored) == 1  # that file's


async def test_a_file_over_the_limit_is_refused_before_it_is_sent(stack: Stack) -> None:
    reader, writer = await send(stack, f"content-length: {(512 << 20) + 1}", body=b"")
    assert b" 413 " in await reader.readline()
    assert b"send at most 536870912" in await reader.readuntil(b"536870912")
    writer.close()
