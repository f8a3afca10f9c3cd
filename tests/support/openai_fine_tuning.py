"""Rows, uploads and jobs as the `openai` client sends them."""

import json
from typing import Any

import openai
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

TALK = {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]}
COMPLETION = {"prompt": "one two", "completion": " three"}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def upload(client: openai.AsyncOpenAI, *rows: Any, name: str = "rows.jsonl", **more: Any) -> FileObject:
    return await client.files.create(file=(name, jsonl(*rows)), purpose="fine-tune", **more)


async def submit(client: openai.AsyncOpenAI, file: FileObject, **more: Any) -> FineTuningJob:
    return await client.fine_tuning.jobs.create(**{"model": "lab/seedling", "training_file": file.id} | more)
