"""`anthesis generate`, `tokenize`, `score`: text in, text out."""

import math
import sys
from typing import Annotated

import typer

from anthesis import Client, SamplingParams, ScoreItem
from anthesis.cli.output import MAX_COUNT, Json, print_json, print_table
from anthesis.v1.inference_pb2 import FinishReason

MAX_SEED = (1 << 64) - 1

Model = Annotated[str, typer.Argument(help="An alias, a version (name@1) or a model.")]
Text = Annotated[str, typer.Argument(help="The text; '-' reads standard input.")]


def register(app: typer.Typer) -> None:
    for command in (generate, tokenize, score):
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
    repetition_penalty: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Complete a prompt; the text streams as it is generated."""
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    with Client() as client:
        if not as_json:
            for part in client.generate(model, read_text(prompt), sampling, stop=stop or ()):
                print(part.text, end="", flush=True)
            print()
            return
        answer = client.complete(model, read_text(prompt), sampling, stop=stop or ())
    print_json(
        {
            "text": answer.text,
            "finish_reason": FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_"),
            "ids": [token.id for token in answer.tokens],
            "usage": answer.usage,
            "model_version": answer.model_version,
        }
    )


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
