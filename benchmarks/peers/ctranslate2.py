"""CTranslate2's Generator, and the conversion it needs. Runs in the environment `venv`.

It takes tokens as strings: its vocabulary here is t0, t1, ..., so its time has a look-up in it.
"""

import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.protocol import Loaded, Prompts, Task, contend

VOCAB = 250_880


def load(task: Task) -> Loaded:
    """`task.weights`: CTranslate2's compute type, int8 or float32."""
    import ctranslate2  # type: ignore[import-not-found, unused-ignore]

    model: Any = ctranslate2.Generator(
        task.model, device="cpu", compute_type=task.weights, inter_threads=1, intra_threads=task.threads
    )

    def generate(given: Prompts, count: int) -> list[list[int]]:
        results = model.generate_batch(
            [[f"t{id_}" for id_ in prompt] for prompt in given],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            end_token=[],
            max_batch_size=0,
        )
        return [result.sequences_ids[0] for result in results]

    facts = {"compute_type": str(model.compute_type)}
    return Loaded(generate=generate, version=f"ctranslate2 {ctranslate2.__version__}", facts=facts)


class _NumberedTokens:
    """What the converter asks a tokenizer for."""

    unk_token, bos_token, eos_token, pad_token = "t0", "t1", "t2", "t3"
    unk_token_id, bos_token_id, eos_token_id, pad_token_id = range(4)
    all_special_tokens = ("t0", "t1", "t2", "t3")
    vocab_size = VOCAB

    def get_vocab(self) -> dict[str, int]:
        return {f"t{id_}": id_ for id_ in range(VOCAB)}

    def __len__(self) -> int:
        return VOCAB


def convert(source: Path, target: Path, quantization: str) -> None:
    """A Hugging Face BLOOM folder (float32) to CTranslate2's format."""
    from ctranslate2.converters import (  # type: ignore[import-not-found, unused-ignore]
        transformers as converters,
    )

    class Converter(converters.TransformersConverter):  # type: ignore[misc, unused-ignore]
        def load_tokenizer(self, *args: object, **kwargs: object) -> _NumberedTokens:
            return _NumberedTokens()

    partial = target.with_name(target.name + ".partial")
    Converter(str(source)).convert(str(partial), quantization=quantization, force=True)
    os.replace(partial, target)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        contend(load)
