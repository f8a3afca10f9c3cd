"""A registry and a gateway, and who calls them."""

from collections.abc import AsyncIterator

import httpx
import openai
import pytest_asyncio
from anthesis.v1 import registry_pb2

from tests.support.gateway_stack import Stack, running_stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as running:
        await running.add_version("lab/seedling", "mit")
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ada(stack: Stack) -> openai.AsyncOpenAI:
    return stack.openai


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    key = await stack.key_of("bob", registry_pb2.ROLE_TRAINER)
    async with openai.AsyncOpenAI(base_url=f"{stack.http_url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """Ada's, for what the client does not show."""
    headers = {"authorization": f"Bearer {stack.ada_key}"}
    async with httpx.AsyncClient(base_url=f"{stack.http_url}/v1", headers=headers, timeout=60) as opened:
        yield opened
