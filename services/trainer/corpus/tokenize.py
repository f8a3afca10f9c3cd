"""Text to tokens: JSONL, Parquet and plain text to shards in Megatron's format, on all cores.

    python -m services.trainer.corpus.tokenize --tokenizer tokenizer.json --output corpora/fr texts/fr

Writes `corpora/fr-00000-of-00007.bin` and `.idx`, and so on, and `corpora/fr.json` with what they are made from and
hold. Started again, whatever ended it, a run goes on behind its last finished shard. Shards depend neither on the
number of workers nor on interruptions. docs/corpora.md says more.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from services.trainer.corpus.manifest import Manifest
from services.trainer.corpus.progress import shown
from services.trainer.corpus.run import SHARD_BYTES, Options, tokenize
from services.trainer.corpus.texts import Reading
from services.trainer.failure import JobFailure

NAMED_BAD_ROWS = 10  # on the terminal; the record has more


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m services.trainer.corpus.tokenize", description=__doc__.split("\n")[0])
    parser.add_argument("inputs", type=Path, nargs="+", help="files, or folders that are searched through")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="prefix of the shards' paths")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: cores")
    parser.add_argument("--key", default="text", help="field of JSONL and Parquet that holds the text")
    parser.add_argument("--plain", choices=("file", "line"), default="file", help="what a document is in plain text")
    parser.add_argument("--append-eos", action=argparse.BooleanOptionalAction, default=True, help="end documents")
    parser.add_argument("--eos", default="</s>", help="the token that ends them")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave out, count and name what cannot be read")
    parser.add_argument("--shard-mb", type=int, default=SHARD_BYTES >> 20, help="MiB of text in a shard")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    for name in ("workers", "shard_mb"):
        if getattr(arguments, name) < 1:
            flag = name.replace("_", "-")
            raise JobFailure("BAD_DATA", f"--{flag} {getattr(arguments, name)} is below 1; give 1 or more")
    return Options(
        tokenizer=arguments.tokenizer,
        inputs=tuple(arguments.inputs),
        output=arguments.output,
        workers=arguments.workers,
        reading=Reading(key=arguments.key, plain=arguments.plain),
        end=arguments.eos if arguments.append_eos else None,
        skip_bad_rows=arguments.skip_bad_rows,
        shard_bytes=arguments.shard_mb << 20,
    )


def _summary(manifest: Manifest, seconds: float) -> str:
    documents, tokens, text_bytes = map(manifest.total, ("num_documents", "num_tokens", "text_bytes"))
    lines = [
        f"{documents:,} documents, {tokens:,} tokens, {text_bytes:,} bytes of text"
        f" in {len(manifest.shards)} shards; {seconds:.1f} s",
    ]
    if manifest.total("num_empty"):
        lines.append(f"left out, without text: {manifest.total('num_empty'):,}")
    if manifest.total("num_bad"):
        lines.append(f"left out, bad: {manifest.total('num_bad'):,}, as")
        lines += manifest.bad_rows[:NAMED_BAD_ROWS]
    return "\n".join(lines)


def main() -> int:
    arguments = _parser().parse_args()
    start = time.monotonic()
    try:
        with shown(Console(stderr=True, highlight=False)) as show:
            manifest = tokenize(_options(arguments), show)
    except JobFailure as failure:
        print(failure, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error}; when that is mended, the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print(_summary(manifest, time.monotonic() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
