"""Use cases of the edge: name -> version -> worker, text -> ids -> text."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain

from anthesis.decoding import Vocabulary

from services.common.auth import Principal
from services.common.errors import InvalidArgument
from services.gateway.choices import best_pieces, choices, drawing_all
from services.gateway.generation import ANONYMOUS, Caller, InvalidParameter, Piece, Pooling, Prompt, Sampling, Token
from services.gateway.inference_client import InferenceClient, ScoreIds
from services.gateway.licence_client import LicenceClient
from services.gateway.metering import Meter
from services.gateway.registry_client import ResolvedModel
from services.gateway.routing import Router
from services.gateway.tokenizer_client import Encoding, TokenizerClient

BEGIN, END = "<s>", "</s>"
MAX_STOPS = 16
MAX_BAD_WORDS = 64  # texts, each of which is two sequences for the worker
MAX_EMBEDDED = 2048


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model ready for use: where its name led, and its table of bytes."""

    resolved: ResolvedModel
    vocabulary: Vocabulary

    @property
    def version(self) -> str:
        return self.resolved.version


@dataclass(frozen=True, slots=True)
class Embedded:
    vectors: Sequence[Sequence[float]]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ScoredText:
    logprob: float  # natural, of the whole text given its context
    num_tokens: int
    num_bytes: int


class GatewayService:
    def __init__(
        self,
        router: Router,
        licences: LicenceClient,
        tokenizer: TokenizerClient,
        inference: InferenceClient,
        meter: Meter,
    ) -> None:
        self._meter = meter
        self._router = router
        self._licences = licences
        self._tokenizer = tokenizer
        self._inference = inference

    async def open(self, model: str) -> OpenModel:
        """To tokenize with it. Raises NotFound, FailedPrecondition for a model whose tokenizer is not byte-level."""
        if not model:
            raise InvalidParameter("model", "model is empty; name an alias, a version or a model")
        resolved = await self._router.resolve(model)
        return OpenModel(resolved, await self._tokenizer.vocabulary(resolved.tokenizer_digest))

    async def open_for(self, principal: Principal, model: str) -> OpenModel:
        """As `open`, to compute with it: one request of the caller's.

        Raises LicenceNotAccepted where `principal` has still to accept a licence, QuotaExceeded.
        """
        await self._meter.admit()
        opened = await self.open(model)
        await self._licences.require_acceptance(principal, opened.version)
        self._meter.count(opened.version, requests=1)
        return opened

    async def encode(self, model: OpenModel, prompts: Sequence[Prompt], param: str = "prompt") -> list[list[int]]:
        """Ids of each prompt, at least one: BLOOM puts nothing before a text, but an empty prompt becomes <s>.

        Raises InvalidParameter for an id that is no token.
        """
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(await self._tokenizer.encode(model.resolved.tokenizer_digest, texts))
        batch = [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]
        for prompt in prompts:
            if not isinstance(prompt, str):
                _check_ids(model, prompt, param)
        return [ids or [self._begin(model)] for ids in batch]

    def check_length(
        self, model: OpenModel, prompt_ids: Sequence[int], num_new_tokens: int = 1, param: str = "prompt"
    ) -> None:
        """Raise InvalidParameter unless some worker serves the prompt with `num_new_tokens` after it."""
        limit = model.resolved.max_sequence_tokens
        if limit and len(prompt_ids) + num_new_tokens > limit:
            raise InvalidParameter(
                param,
                f"the {param} has {len(prompt_ids)} tokens; {model.version} serves sequences of {limit} tokens at "
                f"most, output included: send at most {limit - num_new_tokens}",
                "context_length_exceeded",
            )

    async def sampling_for(
        self, model: OpenModel, sampling: Sampling, *, bad_words: Sequence[str] = (), ignore_eos: bool = False
    ) -> Sampling:
        """`sampling` with the model's end token among its stop ids and texts among its bad words.

        A bad word is banned as it is tokenized alone and after a space. Raises InvalidParameter for an id that is no
        token and for a word without text.
        """
        if len(bad_words) > MAX_BAD_WORDS:
            message = f"bad_words has {len(bad_words)} texts; give at most {MAX_BAD_WORDS}"
            raise InvalidParameter("bad_words", message)
        if "" in bad_words:
            raise InvalidParameter("bad_words", "bad_words has an empty text, which every text holds; leave it out")
        texts = [text for word in bad_words for text in (word, f" {word}")]
        encoded = await self._tokenizer.encode(model.resolved.tokenizer_digest, texts)
        banned = dict.fromkeys([*sampling.bad_words, *map(tuple, encoded)])
        end = None if ignore_eos else model.vocabulary.special_ids.get(END)
        stop_ids = sampling.stop_ids if end is None else (*sampling.stop_ids, end)
        sampling = replace(sampling, bad_words=tuple(banned), stop_ids=stop_ids)
        _check_sampling_ids(model, sampling)
        return sampling

    async def generate(
        self,
        model: OpenModel,
        prompt_ids: list[int],
        sampling: Sampling,
        stops: Sequence[str] = (),
        caller: Caller = ANONYMOUS,
    ) -> AsyncGenerator[Piece, None]:
        """Stream the choices; each one's last piece has `finish`. Closing the stream frees the worker.

        `sampling` comes from `sampling_for`. A choice that a stop string ends is drawn on until all have ended.
        """
        _check_stops(stops)
        self.check_length(model, prompt_ids)
        # Where the text ends decides which choices are best, and the worker knows no text.
        ranked_here = bool(stops) and sampling.num_drawn > sampling.num_choices
        asked = drawing_all(sampling) if ranked_here else sampling
        drawn = await self._router.call(
            model.resolved, lambda worker: self._inference.generate(worker, model.version, prompt_ids, asked, caller)
        )
        self._meter.count(model.version, prompt_tokens=len(prompt_ids))
        completion_tokens: dict[int, int] = {}  # of each choice; of one that was left, as many as came
        try:
            async with drawn, aclosing(choices(drawn, model.vocabulary, stops, asked.num_choices)) as pieces:
                async for piece in best_pieces(pieces, sampling) if ranked_here else pieces:
                    so_far = completion_tokens.get(piece.choice, 0) + len(piece.tokens)
                    completion_tokens[piece.choice] = piece.completion_tokens if piece.finish else so_far
                    yield piece
        finally:
            self._meter.count(model.version, completion_tokens=sum(completion_tokens.values()))

    async def tokenize(self, model: OpenModel, text: str) -> Encoding:
        return await self._tokenizer.encode_with_offsets(model.resolved.tokenizer_digest, text)

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        resolved = await self._router.resolve(model)
        return await self._tokenizer.count(resolved.tokenizer_digest, texts)

    async def embed(
        self, model: OpenModel, inputs: Sequence[Prompt], pooling: Pooling, caller: Caller = ANONYMOUS
    ) -> Embedded:
        """A vector of each input."""
        if len(inputs) > MAX_EMBEDDED:
            raise InvalidParameter("input", f"there are {len(inputs)} inputs; send at most {MAX_EMBEDDED} at a time")
        batch = await self.encode(model, inputs, "input")
        for ids in batch:
            self.check_length(model, ids, 0, "input")
        if not batch:
            return Embedded([], 0)
        vectors = await self._router.call(
            model.resolved, lambda worker: self._inference.embed(worker, model.version, batch, pooling, caller)
        )
        num_tokens = sum(map(len, batch))
        self._meter.count(model.version, prompt_tokens=num_tokens)
        return Embedded(vectors, num_tokens)

    async def score_texts(
        self, model: OpenModel, items: Sequence[tuple[str, str]], caller: Caller = ANONYMOUS
    ) -> list[ScoredText]:
        """Log-likelihood of each (context, text), encoded separately; without a context, <s> comes first."""
        contexts = await self.encode(model, [context for context, _ in items])
        targets = await self._tokenizer.encode(model.resolved.tokenizer_digest, [text for _, text in items])
        scored_items = await self.score_ids(model, list(zip(contexts, targets, strict=True)), caller)
        return [
            ScoredText(sum(token.logprob or 0.0 for token in tokens), len(tokens), len(text.encode()))
            for tokens, (_, text) in zip(scored_items, items, strict=True)
        ]

    async def score_ids(
        self, model: OpenModel, items: Sequence[ScoreIds], caller: Caller = ANONYMOUS
    ) -> list[list[Token]]:
        """Each item's targets with their log-probabilities."""
        for number, (context, targets) in enumerate(items):
            self._check_score_length(model, number, len(context) + len(targets))
        asked = [item for item in items if item[1]]
        if not asked:
            return [[] for _ in items]
        scored = iter(
            await self._router.call(
                model.resolved, lambda worker: self._inference.score(worker, model.version, asked, caller)
            )
        )
        self._meter.count(model.version, prompt_tokens=sum(len(context) + len(targets) for context, targets in asked))
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


def _check_ids(model: OpenModel, ids: Iterable[int], param: str) -> None:
    for token_id in ids:
        try:
            model.vocabulary.bytes_of(token_id)
        except ValueError as error:
            raise InvalidParameter(param, f"{param.replace('_', ' ')}: {error}") from None


def _check_sampling_ids(model: OpenModel, sampling: Sampling) -> None:
    for name, ids in (
        ("logit_bias", sampling.logit_bias),
        ("stop_ids", sampling.stop_ids),
        ("bad_words", chain.from_iterable(sampling.bad_words)),
        ("stop_sequences", chain.from_iterable(sampling.stop_sequences)),
    ):
        _check_ids(model, ids, name)


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidParameter("stop", f"stop has {len(stops)} strings; give at most {MAX_STOPS}")
    if "" in stops:
        raise InvalidParameter("stop", "stop has an empty string, before which every text would end; leave it out")
