"""`python -m services.trainer.harness JOB_FOLDER`: ask, and store what each question scored."""

import logging
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from services.common.logs import RedactingFormatter
from services.common.settings import Platform
from services.trainer.failure import JobFailure, recorded
from services.trainer.folder import JobFolder
from services.trainer.harness.spec import HarnessSpec
from services.trainer.lease_file import end_with_lease
from services.trainer.progress import ProgressWriter

ALWAYS = {
    "HF_EVALUATE_OFFLINE": "1",  # it would fetch metrics that are code
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # what the worker may read is not for every submitter
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def limit_hub(spec: HarnessSpec, env: MutableMapping[str, str]) -> None:
    """What Hugging Face's libraries may fetch: data of the harness's tasks, where the suite has such. They read these
    variables as they are imported.
    """
    env.pop("HF_TOKEN", None)
    env.update(ALWAYS if spec.needs_hub else ALWAYS | OFFLINE)
    env["HF_HOME"] = str(Path(spec.data_dir) / "cache" / "huggingface")


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = HarnessSpec.load(folder.evaluation)
    end_with_lease(folder.lease, spec.fencing_token)
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter())  # a request that fails is logged with its headers
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    limit_hub(spec, os.environ)
    with recorded(folder.failure(spec.fencing_token)):
        try:
            from services.trainer.harness.measure import measure  # the harness, and what it imports, from here on
        except ModuleNotFoundError as error:
            remedy = "install it on the trainer's machine: pip install -c constraints.txt -e '.[lm-eval]'"
            raise JobFailure("NOT_INSTALLED", f"lm-evaluation-harness is not there ({error}); {remedy}") from error
        measure(spec, folder, ProgressWriter(folder.progress), Platform.from_env().read_key("trainer"))


if __name__ == "__main__":
    main(sys.argv[1])
