"""OpenAI's completions as a use case: several prompts, several choices each, echo and log-probabilities."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from anthesis.decoding import IncrementalDecoder

from services.gateway.generation import Piece, PlacedToken, Prompt, Sampling, Token
from services.gateway.service import GatewayService, OpenModel

QUEUED_PIECES = 64  # that a slow client lets wait before its workers' streams are read no further


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    model: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int  # 0: only what `echo` asks for
    num_choices: int = 1  # per prompt
    stops: Sequence[str] = ()
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """A request under way: choice i * num_choices + j is the j-th of prompt i."""

    model: OpenModel
    prompt_ids: list[list[int]]
    request: CompletionRequest

    @property
    def num_choices(self) -> int:
        return len(self.prompt_ids) * self.request.num_choices

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompt_ids))


class Completions:
    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def start(self, request: CompletionRequest) -> Completion:
        """Resolve the model, encode the prompts and check their lengths."""
        model = await self._service.open(request.model)
        prompt_ids = await self._service.encode(model, request.prompts)
        for ids in prompt_ids:
            self._service.check_length(model, ids, num_new_tokens=1 if request.max_tokens else 0)
        return Completion(model, prompt_ids, request)

    async def stream(self, completion: Completion) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces of all choices as they come, each with its choice's index."""
        echoes = await self._echoes(completion) if completion.request.echo else [None] * len(completion.prompt_ids)
        streams = [
            self._choice(completion, ids, echo, number)
            for ids, echo in zip(completion.prompt_ids, echoes, strict=True)
            for number in range(completion.request.num_choices)
        ]
        async with aclosing(_merge(streams)) as pieces:
            async for piece in pieces:
                yield piece

    async def collect(self, completion: Completion) -> list[Piece]:
        """All choices, whole."""
        choices = [Piece() for _ in range(completion.num_choices)]
        async with aclosing(self.stream(completion)) as pieces:
            async for index, piece in pieces:
                choices[index].extend(piece)
        return choices

    async def _choice(
        self, completion: Completion, prompt_ids: list[int], echo: Piece | None, number: int
    ) -> AsyncGenerator[Piece, None]:
        request = completion.request
        if request.max_tokens == 0:
            yield replace(echo or Piece(), finish="LENGTH")
            return
        if echo:
            yield echo
        sampling = replace(request.sampling, max_tokens=request.max_tokens)
        if sampling.seed is not None:  # choices differ, and each is the same when asked again
            sampling = replace(sampling, seed=(sampling.seed + number) % (1 << 64))
        offset = len(echo.text) if echo else 0
        pieces = self._service.generate(completion.model, prompt_ids, sampling, request.stops)
        async with aclosing(pieces):
            async for piece in pieces:
                piece.tokens = [PlacedToken(placed.token, placed.text_offset + offset) for placed in piece.tokens]
                yield piece

    async def _echoes(self, completion: Completion) -> list[Piece]:
        """Each prompt as a piece, with log-probabilities if asked for; the first token has none: it follows nothing."""
        batch = [[Token(token_id) for token_id in ids] for ids in completion.prompt_ids]
        if completion.request.sampling.logprobs is not None:
            items = [(ids[:1], ids[1:]) for ids in completion.prompt_ids]
            scored = await self._service.score_ids(completion.model, items)
            batch = [[Token(context[0]), *targets] for (context, _), targets in zip(items, scored, strict=True)]
        return [
            _echo(completion.model, prompt, tokens)
            for prompt, tokens in zip(completion.request.prompts, batch, strict=True)
        ]


def _echo(model: OpenModel, prompt: Prompt, tokens: list[Token]) -> Piece:
    decoder = IncrementalDecoder(model.vocabulary, skip_special_tokens=False)
    decoded, placed = "", []
    for token in tokens:
        placed.append(PlacedToken(token, len(decoded)))
        decoded += decoder.decode([token.id])
    return Piece(prompt if isinstance(prompt, str) else decoded + decoder.finish(), placed)


async def _merge(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Items of all streams as they come; the first error ends them all, and so does closing."""
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(QUEUED_PIECES)

    async def pump(index: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await queue.put((index, piece))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
