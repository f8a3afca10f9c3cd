"""An engine whose model the CPU operators compute does without torch: a second of its start, 200 MB of its memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from bloom.cpu import CannotBuild, load_library
from tests.support.bloom_models import make_hf_folder
from tests.support.inference_models import VOCAB

PROGRAM = f"""
import sys
from pathlib import Path
import services.inference.engine_process
from services.inference.config import EngineConfig
from services.inference.engine import load_engine
from services.inference.messages import Embed, Generate, Score
from services.inference.sampling import SamplingParams

config = EngineConfig(device="cpu", weights=sys.argv[2], threads=1, max_kv_bytes=1 << 20)
engine, _ = load_engine(Path(sys.argv[1]), config, num_token_ids={VOCAB})
greedy, drawn = {{"temperature": 0.0}}, {{"temperature": 1.0, "n": 2, "best_of": 3}}
for request_id, choice in enumerate((greedy, drawn)):
    sampling = SamplingParams(seed=1, max_tokens=4, logprobs=2, prompt_logprobs=2, **choice)
    assert not engine.handle(Generate(request_id=request_id, prompt_ids=[5, 6, 7], sampling=sampling))
assert not engine.handle(Score(2, [5], [6, 7]))
assert not engine.handle(Embed(3, [5, 6, 7], "mean", True))
kinds = {{type(event).__name__ for _ in range(20) if engine.has_work for event in engine.step()}}
assert kinds == {{"Token", "PromptLogprobs", "Scored", "Embedded"}}, kinds
print(*sorted(name for name in sys.modules if name == "torch" or name.startswith("torch.")))
"""


@pytest.mark.parametrize("weights", ["auto", "int8", "int8_dynamic"])
def test_torch_is_not_imported(tmp_path: Path, weights: str):
    try:
        load_library()
    except CannotBuild as error:
        pytest.skip(f"no operators: {error}")
    folder = make_hf_folder(tmp_path / "model", vocab=VOCAB)
    command = [sys.executable, "-c", PROGRAM, str(folder), weights]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
