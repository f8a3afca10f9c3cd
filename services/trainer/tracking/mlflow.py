"""MLflow, as its own MLFLOW_… variables say: server, user, experiment."""

import os
from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from services.trainer.progress import Progress
from services.trainer.tracking.figures import figures

JOB_TAG = "anthesis.job_id"
EXPERIMENT = "anthesis"  # where MLFLOW_EXPERIMENT_NAME names none
MAX_METRICS = 1000  # that a request takes
MAX_VALUE = 500  # characters of a parameter, as older servers take


class MLflow:
    """A run that is found by its tag: MLflow draws ids itself."""

    def __init__(self, job_id: str, config: dict[str, Any]) -> None:
        self._client = MlflowClient()
        self._run_id = (self._find(job_id) or self._create(job_id, config)).info.run_id
        self._client.update_run(self._run_id, status="RUNNING")

    def _find(self, job_id: str) -> Run | None:
        found = self._client.search_runs([self._experiment()], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
        return found[0] if found else None

    def _create(self, job_id: str, config: dict[str, Any]) -> Run:
        run = self._client.create_run(self._experiment(), tags={JOB_TAG: job_id}, run_name=job_id)
        params = [Param(name, str(value)[:MAX_VALUE]) for name, value in config.items()]
        self._client.log_batch(run.info.run_id, params=params)
        return run

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def track(self, steps: Sequence[Progress]) -> None:
        metrics = [
            Metric(name, value, int(step.time * 1000), step.step)
            for step in steps
            for name, value in figures(step).items()
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MAX_METRICS])

    def close(self, is_done: bool) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if is_done else "KILLED")
