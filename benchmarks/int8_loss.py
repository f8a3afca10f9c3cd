"""What int8 weights cost a model: bits per byte by language, by the engine that serves it.

    python -m benchmarks.int8_loss MODEL_FOLDER [--text PASSAGES.jsonl]

Passages are rows of language, text and, where there is one, the context before it; by default the demo's held-out
articles of the Declaration and source files. Ends with 1 where int8 needs over 0.5 % more bits in total than bf16.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from bloom.checkpoint import load_config
from examples.demo import data
from examples.demo.__main__ import CACHE
from examples.demo.corpus import Passage
from examples.demo.sizes import Size, Sizes, add, total
from services.inference.config import EngineConfig
from services.inference.engine import Engine, load_engine
from services.inference.messages import Score, Scored

ALLOWED = 0.005  # more bits than bf16, in total
REFERENCE = "bfloat16"
FORMATS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    REFERENCE: {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "weights": "int8"},
    "int8_dynamic": {"dtype": "bfloat16", "weights": "int8_dynamic"},
}


def read_passages(path: Path | None) -> Sequence[Passage]:
    if path is None:
        return data.gather(CACHE / "udhr").passages
    rows = (json.loads(line) for line in path.read_text().splitlines() if line)
    return [Passage(language=row["language"], context=row.get("context", ""), text=row["text"]) for row in rows]


def encode(tokenizer: Tokenizer, passages: Sequence[Passage], begin: int) -> list[tuple[list[int], list[int]]]:
    """Ids of context and text, as the gateway's Score has them: an empty context becomes <s>."""
    texts = [text for passage in passages for text in (passage.context, passage.text)]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return [(context or [begin], text) for context, text in zip(ids[::2], ids[1::2], strict=True)]


def measure(engine: Engine, passages: Sequence[Passage], items: list[tuple[list[int], list[int]]]) -> Sizes:
    """Bits of the passages' texts, by language."""
    sizes: Sizes = {}
    for number, (context, text) in enumerate(items):
        engine.handle(Score(request_id=number, context_ids=context, target_ids=text))
        while engine.has_work:
            for event in engine.step():
                assert isinstance(event, Scored), event
                num_bytes = len(passages[number].text.encode())
                add(sizes, passages[number].language, Size(-sum(event.logprobs) / math.log(2), num_bytes))
    return sizes


def report(found: dict[str, Sizes]) -> None:
    names, reference = list(found), found[REFERENCE]
    others = [name for name in names if name != REFERENCE]
    print(f"{'':10}{''.join(f'{name:>14}' for name in names)}   more bits than {REFERENCE}: {', '.join(others)}")
    for language in [*sorted(reference), None]:
        chosen = list(reference) if language is None else [language]
        bits = {name: total(sizes, chosen) for name, sizes in found.items()}
        more = "".join(f"{bits[name] / bits[REFERENCE] - 1:>+9.2%}" for name in others)
        print(f"{language or 'total':10}{''.join(f'{bits[name]:>14.4f}' for name in names)}   {more}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_loss", description="Bits per byte in int8.")
    parser.add_argument("model", type=Path, help="folder with config.json, safetensors and tokenizer.json")
    parser.add_argument("--text", type=Path, help="JSON lines of language, text and context (the demo's passages)")
    parser.add_argument("--torch", action="store_true", help="compute in plain torch, not by bloom.cpu")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    passages = read_passages(args.text)
    items = encode(tokenizer, passages, load_config(args.model).bos_token_id)
    found: dict[str, Sizes] = {}
    for name, settings in FORMATS.items():
        config = EngineConfig(cpu_operators=not args.torch, max_kv_bytes=1 << 28, **settings)  # type: ignore[arg-type]
        engine, _ = load_engine(args.model, config, num_token_ids=tokenizer.get_vocab_size())
        found[name] = measure(engine, passages, items)
    report(found)
    lost = {name: total(found[name], found[name]) / total(found[REFERENCE], found[REFERENCE]) - 1 for name in found}
    return int(max(lost["int8"], lost["int8_dynamic"]) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
