"""The JSON of OpenAI's embeddings. Source: OpenAI's API reference, Embeddings."""

from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from services.gateway.generation import Caller, InvalidParameter, Pooling, Prompt
from services.gateway.openai_completions import Json, Text, as_prompts
from services.gateway.service import Embedded


class EmbeddingBody(BaseModel):
    """Body of POST /v1/embeddings; None is what is left out. What follows `user` is not OpenAI's."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Text
    input: Text | list[Text] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    priority: int | None = None

    def inputs(self) -> list[Prompt]:
        """Raises InvalidParameter for an empty list, and for `dimensions`."""
        if self.dimensions is not None:
            message = f"dimensions={self.dimensions} is not supported: a vector is as wide as the model; leave it out"
            raise InvalidParameter("dimensions", message)
        return as_prompts("input", self.input)

    def how(self) -> Pooling:
        return Pooling(kind=self.pooling, normalize=self.normalize)

    def caller(self, client: str) -> Caller:
        return Caller(client=client, priority=self.priority or 0)

    def answer(self, version: str, embedded: Embedded) -> Json:
        write = _base64 if self.encoding_format == "base64" else list
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": write(vector)}
                for index, vector in enumerate(embedded.vectors)
            ],
            "model": version,
            "usage": {"prompt_tokens": embedded.num_tokens, "total_tokens": embedded.num_tokens},
        }


def _base64(vector: Sequence[float]) -> str:
    """fp32, little-endian as all machines are on which this runs."""
    return b64encode(array("f", vector).tobytes()).decode()
