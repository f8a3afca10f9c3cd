"""OpenAI's completions as a use case: several prompts, several choices each, echo and log-probabilities."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from anthesis.decoding import IncrementalDecoder

from services.common.auth import Principal
from services.gateway.generation import ANONYMOUS, Caller, Piece, PlacedToken, Prompt, Sampling, Token
from services.gateway.service import GatewayService, OpenModel

QUEUED_PIECES = 64  # that a slow client lets wait before its workers' streams are read no further


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    model: str
    prompts: Sequence[Prompt]
    sampling: Sampling  # its `n` counts for each prompt
    with_output: bool = True  # else only what `echo` asks for
    stops: Sequence[str] = ()
    bad_words: Sequence[str] = ()
    ignore_eos: bool = False
    echo: bool = False
    caller: Caller = ANONYMOUS


@dataclass(frozen=True, slots=True)
class Completion:
    """A request under way: choice i * n + j is the j-th of prompt i."""

    model: OpenModel
    prompt_ids: list[list[int]]
    sampling: Sampling
    request: CompletionRequest

    @property
    def num_choices(self) -> int:
        return len(self.prompt_ids) * self.sampling.num_choices

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompt_ids))


class Completions:
    def __init__(self, service: GatewayService) -> None:
        self._service = service

    async def start(self, principal: Principal, request: CompletionRequest) -> Completion:
        """Resolve the model, which `principal` may have to accept first, encode prompts and bad words, check all."""
        model = await self._service.open_for(principal, request.model)
        prompt_ids = await self._service.encode(model, request.prompts)
        for ids in prompt_ids:
            self._service.check_length(model, ids, num_new_tokens=1 if request.with_output else 0)
        sampling = await self._service.sampling_for(
            model, request.sampling, bad_words=request.bad_words, ignore_eos=request.ignore_eos
        )
        if request.echo:
            sampling = replace(sampling, prompt_logprobs=sampling.logprobs)
        return Completion(model, prompt_ids, sampling, request)

    async def stream(self, completion: Completion) -> AsyncGenerator[Piece, None]:
        """Pieces of all choices as they come."""
        streams = [self._stream_prompt(completion, number) for number in range(len(completion.prompt_ids))]
        async with aclosing(_merge(streams)) as pieces:
            async for piece in pieces:
                yield piece

    async def collect(self, completion: Completion) -> list[Piece]:
        """All choices, whole."""
        choices = [Piece() for _ in range(completion.num_choices)]
        async with aclosing(self.stream(completion)) as pieces:
            async for piece in pieces:
                choices[piece.choice].extend(piece)
        return choices

    async def _stream_prompt(self, completion: Completion, number: int) -> AsyncGenerator[Piece, None]:
        """Pieces of one prompt's choices: for each the prompt, if it is to be echoed, then what is drawn."""
        first = number * completion.sampling.num_choices
        offset = 0  # where the output's text starts
        async with aclosing(self._answer(completion, number)) as pieces:
            async for piece in pieces:
                if piece.prompt:
                    echo = _echo(completion.model, completion.request.prompts[number], piece.prompt)
                    offset = len(echo.text)
                    for choice in range(completion.sampling.num_choices):
                        yield replace(echo, choice=first + choice)
                else:
                    tokens = [PlacedToken(placed.token, placed.text_offset + offset) for placed in piece.tokens]
                    yield replace(piece, tokens=tokens, choice=first + piece.choice)

    async def _answer(self, completion: Completion, number: int) -> AsyncGenerator[Piece, None]:
        """Pieces of one prompt; with echo, its tokens first. The first token has no log-probability."""
        request, sampling, ids = completion.request, completion.sampling, completion.prompt_ids[number]
        if request.echo and sampling.logprobs is None:
            yield Piece(prompt=[Token(token_id) for token_id in ids])
        if request.with_output:
            pieces = self._service.generate(completion.model, ids, sampling, request.stops, request.caller)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
            return
        if request.echo and sampling.logprobs is not None:
            (scored,) = await self._service.score_ids(completion.model, [(ids[:1], ids[1:])], request.caller)
            yield Piece(prompt=[Token(ids[0]), *scored])
        for choice in range(sampling.num_choices):
            yield Piece(finish="LENGTH", choice=choice)


def _echo(model: OpenModel, prompt: Prompt, tokens: list[Token]) -> Piece:
    decoder = IncrementalDecoder(model.vocabulary, skip_special_tokens=False)
    decoded, placed = "", []
    for token in tokens:
        placed.append(PlacedToken(token, len(decoded)))
        decoded += decoder.decode([token.id])
    return Piece(prompt if isinstance(prompt, str) else decoded + decoder.finish(), placed)


async def _merge(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """Items of all streams as they come; the first error ends them all, and so does closing."""
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(QUEUED_PIECES)

    async def pump(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await queue.put(piece)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
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
