"""What a model has learned, asked through the gateway: bits per byte, languages named, translations."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import sacrebleu
from anthesis.client import Client
from anthesis.v1.generation_pb2 import ScoreItem
from anthesis.v1.inference_pb2 import SamplingParams

from .corpus import Passage
from .languages import NAMES
from .parallel import Example
from .sizes import Size, Sizes, add

BATCH = 16  # passages scored in one call
MAX_CONCURRENT = 24  # completions under way
MAX_NAME_TOKENS = 12
MAX_TRANSLATION_TOKENS = 64
GREEDY = SamplingParams(temperature=0.0)
# What is read by people: a model this small repeats itself when it always takes the likeliest token.
LIVELY = SamplingParams(temperature=0.4, top_p=0.9, repetition_penalty=1.15, seed=1)
CUT = "\N{REPLACEMENT CHARACTER}"  # what the bytes of an unfinished character decode to

Item = TypeVar("Item")
Result = TypeVar("Result")


def model_sizes(client: Client, model: str, passages: Sequence[Passage]) -> Sizes:
    """Bits that `model` needs for each passage after its context."""
    sizes: Sizes = {}
    for start in range(0, len(passages), BATCH):
        batch = passages[start : start + BATCH]
        items = [ScoreItem(context=passage.context, text=passage.text) for passage in batch]
        for passage, scored in zip(batch, client.score(model, items).items, strict=True):
            add(sizes, passage.language, Size(-scored.logprob / math.log(2), scored.num_bytes))
    return sizes


def answer_all(client: Client, model: str, examples: Sequence[Example]) -> list[str]:
    """The model's greedy answer to each example."""
    prompts = [example.inputs for example in examples]
    return [first_line(answer) for answer in complete_all(client, model, prompts, MAX_TRANSLATION_TOKENS, GREEDY)]


def naming_accuracy(client: Client, model: str, examples: Sequence[Example]) -> float:
    """Share of sentences whose language the model's greedy answer names, exactly."""
    answers = complete_all(client, model, [example.inputs for example in examples], MAX_NAME_TOKENS, GREEDY)
    right = [first_line(answer) == NAMES[e.language] for answer, e in zip(answers, examples, strict=True)]
    return sum(right) / len(right)


def chrf(client: Client, model: str, pairs: Sequence[Example]) -> float:
    """chrF (0 to 100) of the model's greedy translations against the pairs' targets."""
    answers = answer_all(client, model, pairs)
    return float(sacrebleu.corpus_chrf(answers, [[pair.targets.strip() for pair in pairs]]).score)


def first_line(completion: str) -> str:
    """The first line that says something: a model that begins with a new line has not failed for that."""
    return completion.strip().partition("\n")[0].strip()


def complete_all(
    client: Client, model: str, prompts: Sequence[str], max_tokens: int, sampling: SamplingParams
) -> list[str]:
    """The completion of each prompt; a character that the last token leaves unfinished is left out."""
    limited = SamplingParams()
    limited.CopyFrom(sampling)
    limited.max_tokens = max_tokens

    def complete(prompt: str) -> str:
        return str(client.complete(model, prompt, limited).text).rstrip(CUT)

    return concurrently(complete, prompts)


def concurrently(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        return list(pool.map(function, items))
