"""Client of the Anthesis platform.

    from anthesis import Client, SamplingParams

    with Client() as client:
        for part in client.generate("seedling", "Tous les êtres humains", SamplingParams(max_tokens=40)):
            print(part.text, end="", flush=True)

Messages are those of `protos/anthesis/v1`; errors are in `anthesis.errors`.
"""

from anthesis.aio import AsyncClient, Completion, GenerateOptions
from anthesis.client import Client
from anthesis.errors import AnthesisError
from anthesis.settings import Settings
from anthesis.v1.generation_pb2 import ScoreItem
from anthesis.v1.inference_pb2 import SamplingParams
from anthesis.v1.job_pb2 import (
    CleanCorpusSpec,
    EvaluateSpec,
    FineTuneSpec,
    ImportModelSpec,
    LoraOptions,
    PretrainSpec,
    TrainOptions,
    TrainTokenizerSpec,
    ValidateDatasetSpec,
)
from anthesis.v1.tokenizer_pb2 import TokenIds

__all__ = [
    "AnthesisError",
    "AsyncClient",
    "CleanCorpusSpec",
    "Client",
    "Completion",
    "EvaluateSpec",
    "FineTuneSpec",
    "GenerateOptions",
    "ImportModelSpec",
    "LoraOptions",
    "PretrainSpec",
    "SamplingParams",
    "ScoreItem",
    "Settings",
    "TokenIds",
    "TrainOptions",
    "TrainTokenizerSpec",
    "ValidateDatasetSpec",
]
