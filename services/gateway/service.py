"""Use cases of the edge: name -> version -> worker, text -> ids -> text."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from anthesis.decoding import Vocabulary

from services.common.errors import DomainError, InvalidArgument
from services.gateway.generation import InvalidParameter, Piece, Prompt, Sampling, Token
from services.gateway.inference_client import InferenceClient, ScoreIds, TokenStream
from services.gateway.registry_client import ResolvedModel
from services.gateway.routing import Router
from services.gateway.text_stream import TextStream
from services.gateway.tokenizer_client import Encoding, TokenizerClient

BEGIN, END = "<s>", "</s>"
MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model ready for use: where its name led, and its table of bytes."""

    resolved: ResolvedModel
    vocabulary: Vocabulary

    @property
    def version(self) -> str:
        return self.resolved.version


@dataclass(frozen=True, slots=True)
class ScoredText:
    logprob: float  # natural, of the whole text given its context
    num_tokens: int
    num_bytes: int


class GatewayService:
    def __init__(self, router: Router, tokenizer: TokenizerClient, inference: InferenceClient) -> None:
        self._router = router
        self._tokenizer = tokenizer
        self._inference = inference

    async def open(self, model: str) -> OpenModel:
        """Raises NotFound for an unknown model, FailedPrecondition for one whose tokenizer is not byte-level."""
        if not model:
            raise InvalidParameter("model", "model is empty; name an alias, a version or a model")
        resolved = await self._router.resolve(model)
        return OpenModel(resolved, await self._tokenizer.vocabulary(resolved.tokenizer_digest))

    async def encode(self, model: OpenModel, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids of each prompt, at least one: BLOOM puts nothing before a text, but an empty prompt becomes <s>.

        Raises InvalidParameter for an id that is no token.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(await self._tokenizer.encode(model.resolved.tokenizer_digest, texts))
        batch = [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]
        for prompt in prompts:
            if not isinstance(prompt, str):
                _check_ids(model, prompt)
        return [ids or [self._begin(model)] for ids in batch]

    def check_length(self, model: OpenModel, prompt_ids: Sequence[int], num_new_tokens: int = 1) -> None:
        """Raise InvalidParameter unless some worker serves the prompt with `num_new_tokens` after it."""
        limit = model.resolved.max_sequence_tokens
        if limit and len(prompt_ids) + num_new_tokens > limit:
            raise InvalidParameter(
                "prompt",
                f"the prompt has {len(prompt_ids)} tokens; {model.version} serves sequences of {limit} tokens at most, "
                f"output included: send at most {limit - num_new_tokens}",
                "context_length_exceeded",
            )

    async def generate(
        self, model: OpenModel, prompt_ids: list[int], sampling: Sampling, stops: Sequence[str] = ()
    ) -> AsyncGenerator[Piece, None]:
        """Stream the completion; the last piece has `finish`. Closing the stream frees the worker."""
        _check_stops(stops)
        self.check_length(model, prompt_ids)
        end = model.vocabulary.special_ids.get(END)
        if end is not None:
            sampling = replace(sampling, stop_ids=(*sampling.stop_ids, end))
        drawn = await self._router.call(
            model.resolved, lambda worker: self._inference.generate(worker, model.version, prompt_ids, sampling)
        )
        async with drawn, aclosing(_pieces(drawn, TextStream(model.vocabulary, stops))) as pieces:
            async for piece in pieces:
                yield piece

    async def tokenize(self, model: OpenModel, text: str) -> Encoding:
        return await self._tokenizer.encode_with_offsets(model.resolved.tokenizer_digest, text)

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        resolved = await self._router.resolve(model)
        return await self._tokenizer.count(resolved.tokenizer_digest, texts)

    async def score_texts(self, model: OpenModel, items: Sequence[tuple[str, str]]) -> list[ScoredText]:
        """Log-likelihood of each (context, text), encoded separately; without a context, <s> comes first."""
        contexts = await self.encode(model, [context for context, _ in items])
        targets = await self._tokenizer.encode(model.resolved.tokenizer_digest, [text for _, text in items])
        scored_items = await self.score_ids(model, list(zip(contexts, targets, strict=True)))
        return [
            ScoredText(sum(token.logprob or 0.0 for token in tokens), len(tokens), len(text.encode()))
            for tokens, (_, text) in zip(scored_items, items, strict=True)
        ]

    async def score_ids(self, model: OpenModel, items: Sequence[ScoreIds]) -> list[list[Token]]:
        """Each item's targets with their log-probabilities."""
        for number, (context, targets) in enumerate(items):
            self._check_score_length(model, number, len(context) + len(targets))
        asked = [item for item in items if item[1]]
        if not asked:
            return [[] for _ in items]
        scored = iter(
            await self._router.call(model.resolved, lambda worker: self._inference.score(worker, model.version, asked))
        )
        return [next(scored) if targets else [] for _, targets in items]

    def _check_score_length(self, model: OpenModel, number: int, num_tokens: int) -> None:
        limit = model.resolved.max_sequence_tokens
        if limit and num_tokens > limit:
            raise InvalidArgument(
                f"items[{number}] has {num_tokens} tokens with its context; {model.version} serves {limit} at most"
            )

    def _begin(self, model: OpenModel) -> int:
        begin = model.vocabulary.special_ids.get(BEGIN)
        if begin is None:
            raise InvalidParameter("prompt", f"the prompt is empty and the tokenizer of {model.version} has no {BEGIN}")
        return begin


async def _pieces(drawn: TokenStream, text: TextStream) -> AsyncGenerator[Piece, None]:
    num_tokens = 0
    async for message in drawn:
        piece = Piece()
        for token in message.tokens:
            num_tokens += 1
            piece.extend(text.feed(token))
            if text.stopped:
                break
        if message.finish and not text.stopped:
            piece.extend(text.finish())
        if text.stopped or message.finish:
            piece.finish, piece.completion_tokens = "STOP" if text.stopped else message.finish, num_tokens
            yield piece
            return
        if piece.text:
            yield piece
    raise DomainError("the inference worker ended the stream without a finish reason")


def _check_ids(model: OpenModel, ids: Sequence[int]) -> None:
    for token_id in ids:
        try:
            model.vocabulary.bytes_of(token_id)
        except ValueError as error:
            raise InvalidParameter("prompt", f"prompt: {error}") from None


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidParameter("stop", f"stop has {len(stops)} strings; give at most {MAX_STOPS}")
    if "" in stops:
        raise InvalidParameter("stop", "stop has an empty string, before which every text would end; leave it out")
