"""Which trackers an environment asks for, and what of it nobody is to read."""

import os
import re
from collections.abc import Mapping

SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)
SWITCHES = frozenset({"", "0", "1", "true", "false"})  # TOKENIZERS_PARALLELISM is no secret
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


def configured(env: Mapping[str, str] = os.environ) -> list[str]:
    """TensorBoard needs nothing; W&B needs WANDB_PROJECT, MLflow MLFLOW_TRACKING_URI."""
    wanted = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_TRACKING_URI"}
    return ["tensorboard", *(name for name, variable in wanted.items() if env.get(variable))]


def without_secrets(text: str, env: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of variables whose names speak of keys, and without users in addresses."""
    secrets = {value for name, value in env.items() if SECRET.search(name) and value.lower() not in SWITCHES}
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "***")
    return USER_IN_URL.sub("***@", text)
