"""A job whose base brings the state of the run that made it goes on with that run: can it?

The state is a checkpoint of the trainer's (services/trainer/saved_state.py) in the version's folder `state/`.
"""

import json
from typing import Any

from bloom.config import BloomConfig
from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition, InvalidArgument
from services.registry.job_specs import FineTuneSpec
from services.registry.tables import ModelVersion
from services.registry.versions import SHAPE

STATE_FOLDER = "state/"
MANIFEST = f"{STATE_FOLDER}manifest.json"
MAX_BYTES = 16 << 20


def check_continues(artifacts: ArtifactStore, base: ModelVersion, spec: FineTuneSpec) -> None:
    """Raise InvalidArgument where the job cannot go on from its base's state, FailedPrecondition for a broken state.

    Adapters begin anew, as does a job whose base has no state. Blocking.
    """
    files = {file["path"]: file["digest"] for file in base.files}
    if spec.lora or MANIFEST not in files:
        return
    step = _checked_step(artifacts, base, files)
    goes_on = f"base {base.name} brings its optimizer's state at step {step}, from which the job goes on"
    anew = "or import the version without its state to begin anew"
    options = spec.options
    if options.optimizer == "muon":
        raise InvalidArgument(f"optimizer='muon': {goes_on}, and it is AdamW's; choose adamw, {anew}")
    if options.steps is None:
        raise InvalidArgument(
            f"epochs={options.epochs:.7g}: {goes_on}; say steps, counted from the run's start, {anew}"
        )
    if options.steps <= step:
        raise InvalidArgument(
            f"steps={options.steps}: {goes_on}, and steps count from the run's start; say more, {anew}"
        )


def _checked_step(artifacts: ArtifactStore, base: ModelVersion, files: dict[str, str]) -> int:
    broken = FailedPrecondition(
        f"{MANIFEST} of {base.name} is none of this release; convert and import the state again"
    )
    if artifacts.size(files[MANIFEST]) > MAX_BYTES:
        raise broken
    try:
        manifest: dict[str, Any] = json.loads(artifacts.read_bytes(files[MANIFEST]))
        step, config = int(manifest["step"]), BloomConfig.from_hf(manifest["config"])
        digests = {f"{STATE_FOLDER}{name}": f"sha256:{digest}" for name, digest in manifest["files"].items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise broken from None
    for path, digest in digests.items():
        if files.get(path) != digest:
            what = f"{base.name} has no {path} as its {MANIFEST} names it"
            raise FailedPrecondition(f"{what}; import the whole folder again")
    weights = BloomConfig.from_hf(json.loads(base.config_json))
    if any(getattr(config, key) != getattr(weights, key) for key in SHAPE):
        what = f"the state of {base.name} is of a model of another shape than its weights"
        raise FailedPrecondition(f"{what}; convert and import both again")
    return step
