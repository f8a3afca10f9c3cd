"""`anthesis generate`, `tokenize`, `score`, `embed`: text in; text, ids or numbers out."""

import math
import sys
from typing import Annotated, Literal

import typer

from anthesis import Client, Completion, GenerateOptions, SamplingParams, ScoreItem
from anthesis.cli.output import MAX_COUNT, Json, print_json, print_table
from anthesis.v1.inference_pb2 import FinishReason

MAX_SEED = (1 << 64) - 1
MAX_CHOICES = 128

Model = Annotated[str, typer.Argument(help="An alias, a version (name@1) or a model.")]
Text = Annotated[str, typer.Argument(help="The text; '-' reads standard input.")]


def register(app: typer.Typer) -> None:
    for command in (generate, tokenize, score, embed):
        app.command()(command)


def read_text(text: str) -> str:
    """The argument, or standard input for "-". Raises ValueError for bytes that are no UTF-8."""
    shown = "standard input" if text == "-" else f"the text {text[:40]!r}"
    text = sys.stdin.read() if text == "-" else text
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python carries stray bytes as half surrogate pairs
        raise ValueError(f"{shown} is not UTF-8 at character {error.start + 1}; convert it (iconv does)") from None
    return text


def generate(
    model: Model,
    prompt: Text,
    max_tokens: Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, max=MAX_COUNT, help="0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="Of the likeliest token's probability.")] = None,
    typical_p: Annotated[float | None, typer.Option(min=0, max=1, help="Locally typical sampling.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0, help="1 is off.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(min=-2, max=2)] = None,
    frequency_penalty: Annotated[float | None, typer.Option(min=-2, max=2)] = None,
    logit_bias: Annotated[list[str] | None, typer.Option(help="ID=BIAS; may be repeated.")] = None,
    bad_word: Annotated[list[str] | None, typer.Option(help="Never written; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same text.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, max=MAX_CHOICES, help="Answers.")] = None,
    best_of: Annotated[int | None, typer.Option(min=1, max=MAX_CHOICES, help="Of so many, the likeliest.")] = None,
    min_tokens: Annotated[int | None, typer.Option(min=0, max=MAX_COUNT, help="No end before so many.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after </s>.")] = False,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Lower runs first.")] = 0,
    as_json: Json = False,
) -> None:
    """Complete a prompt; the text streams as it is generated, or comes whole where there are several answers."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=dict(map(_bias, logit_bias or ())),
        seed=seed,
        n=n,
        best_of=best_of,
        min_tokens=min_tokens,
    )
    options: GenerateOptions = {
        "stop": stop or (),
        "bad_words": bad_word or (),
        "ignore_eos": ignore_eos,
        "priority": priority,
    }
    text = read_text(prompt)
    with Client() as client:
        if not as_json and (n or 1) == 1:
            for part in client.generate(model, text, sampling, **options):
                print(part.text, end="", flush=True)
            print()
            return
        answers = client.choices(model, text, sampling, **options)
    if as_json:
        print_json(_plain(answers[0]) if n is None else [_plain(answer) for answer in answers])
        return
    for number, answer in enumerate(answers, start=1):
        print(f"[{number}] {answer.text}")


def _plain(answer: Completion) -> dict[str, object]:
    return {
        "text": answer.text,
        "finish_reason": FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_"),
        "ids": [token.id for token in answer.tokens],
        "usage": answer.usage,
        "model_version": answer.model_version,
    }


def _bias(text: str) -> tuple[int, float]:
    """ "123=-5" as id and bias. Raises typer.BadParameter."""
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not ID=BIAS; give for example --logit-bias 123=-5") from None


def embed(
    model: Model,
    texts: Annotated[list[str], typer.Argument(help="One or more texts; '-' reads standard input.")],
    pooling: Annotated[str, typer.Option(help="'mean' of all tokens, or the 'last' one.")] = "mean",
    normalize: Annotated[bool, typer.Option(help="To length 1.")] = True,
) -> None:
    """Vectors of texts, as JSON."""
    if pooling not in ("mean", "last"):
        raise typer.BadParameter(f"--pooling {pooling!r} is not offered; use 'mean' or 'last'")
    kind: Literal["mean", "last"] = "last" if pooling == "last" else "mean"
    with Client() as client:
        answer = client.embed(model, [read_text(text) for text in texts], pooling=kind, normalize=normalize)
    vectors = [list(embedding.values) for embedding in answer.embeddings]
    print_json({"embeddings": vectors, "usage": answer.usage, "model_version": answer.model_version})


def tokenize(model: Model, text: Text, as_json: Json = False) -> None:
    """Show a text's tokens: ids, bytes and the ids decoded back."""
    with Client() as client:
        answer = client.tokenize(model, read_text(text))
    if as_json:
        print_json(
            {
                "ids": answer.ids,
                "tokens": answer.tokens,
                "text": answer.text,
                "byte_offsets": [[span.start, span.end] for span in answer.byte_offsets],
                "tokenizer_digest": answer.tokenizer_digest,
            }
        )
        return
    shown = (token.decode(errors="backslashreplace").replace("\n", "\\n") for token in answer.tokens)
    print_table(("ID", "TOKEN"), zip(answer.ids, (f"|{token}|" for token in shown), strict=True))


def score(
    model: Model,
    text: Text,
    context: Annotated[str, typer.Option(help="What the text follows; not scored itself.")] = "",
    as_json: Json = False,
) -> None:
    """Log-likelihood of a text given its context."""
    with Client() as client:
        answer = client.score(model, [ScoreItem(context=context, text=read_text(text))])
    item = answer.items[0]
    bits_per_byte = -item.logprob / math.log(2) / item.num_bytes if item.num_bytes else 0.0
    if as_json:
        figures = {"logprob": item.logprob, "num_tokens": item.num_tokens, "num_bytes": item.num_bytes}
        print_json({**figures, "bits_per_byte": bits_per_byte, "model_version": answer.model_version})
        return
    columns = ("LOG-PROBABILITY", "TOKENS", "BYTES", "BITS PER BYTE", "VERSION")
    row = (f"{item.logprob:.4f}", item.num_tokens, item.num_bytes, f"{bits_per_byte:.4f}", answer.model_version)
    print_table(columns, [row])
