"""The same through OpenAI's client: python examples/openai_client.py [MODEL] [PROMPT]"""

import os
import sys
from pathlib import Path

from openai import OpenAI


def main(model: str = "seedling", prompt: str = "Everyone has the right to") -> None:
    address = os.environ.get("ANTHESIS_GATEWAY_HTTP_ADDRESS") or "127.0.0.1:8080"
    key_file = Path(os.environ.get("ANTHESIS_DATA") or ".anthesis") / "keys" / "admin.key"
    key = os.environ.get("ANTHESIS_API_KEY") or key_file.read_text().strip()
    client = OpenAI(base_url=f"http://{address}/v1", api_key=key)
    print(prompt, end="", flush=True)
    for part in client.completions.create(model=model, prompt=prompt, max_tokens=64, temperature=0.7, stream=True):
        print(part.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
