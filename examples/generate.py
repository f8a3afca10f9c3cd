"""Stream a completion over gRPC: python examples/generate.py [MODEL] [PROMPT]"""

import sys

from anthesis.client import Client
from anthesis.v1.inference_pb2 import SamplingParams


def main(model: str = "seedling", prompt: str = "Everyone has the right to") -> None:
    with Client() as client:  # addresses and key: ANTHESIS_* or the data folder
        print(prompt, end="", flush=True)
        for part in client.generate(model, prompt, SamplingParams(temperature=0.7, max_tokens=64, seed=1)):
            print(part.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
