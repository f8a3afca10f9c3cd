"""One measurement: the suite's tasks, made and asked, and what each question scored, stored."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator

import lm_eval
from aiohttp import ClientError
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate

from services.common.artifacts import ArtifactStore
from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.harness.gateway import Gateway, headers_for, wait_until_served
from services.trainer.harness.known import find_tasks, known_tasks, language_of, seeded
from services.trainer.harness.rows import tasks_of_rows
from services.trainer.harness.scores import Pairs, scores_of
from services.trainer.harness.spec import HarnessSpec
from services.trainer.progress import Progress, ProgressWriter

SEED = 1234  # of the examples before questions; the harness's own
Asked = tuple[str, str, Task]  # language, task's name, task
Documents = dict[str, dict[str, Pairs]]  # language -> "<task>/<metric>" -> what each question scored


class Reported:
    """Answers of the gateway as steps of the job."""

    def __init__(self, writer: ProgressWriter) -> None:
        self.gateway: Gateway | None = None
        self._writer = writer
        self._began = time.monotonic()
        self._step = self._num_tokens = self._num_scored = 0
        self._nats = 0.0

    def __call__(self, num_answers: int, num_tokens: int, num_scored: int, nats: float) -> None:
        self._step += num_answers
        self._num_tokens += num_tokens
        self._num_scored += num_scored
        self._nats += nats
        total = max(self._step, self.gateway.num_requests if self.gateway else 0)
        spent_s = time.monotonic() - self._began
        self._writer.step(
            Progress(
                step=self._step,
                total_steps=total,
                loss=self._nats / max(1, self._num_scored),
                learning_rate=0.0,
                grad_norm=0.0,
                tokens_per_second=self._num_tokens / spent_s,
                tokens_seen=self._num_tokens,
                seconds_left=spent_s / self._step * (total - self._step),
                time=time.time(),
            )
        )


def measure(spec: HarnessSpec, folder: JobFolder, progress: ProgressWriter, key: str) -> None:
    """Ask, store what each question scored, and write that artifact's digest down. Raises JobFailure."""
    headers = headers_for(spec, key)
    wait_until_served(spec.gateway_url, spec.version, headers, served_within_s())
    store = spec.store()
    try:
        encoder = Encoder(store.local_path(spec.tokenizer_digest))
        asked = list(_tasks(spec, store))
    except (NotFound, DataLoss, InvalidArgument) as error:
        raise JobFailure("BAD_ARTIFACT", str(error)) from error
    progress.message(f"asking {spec.version} {len(asked)} tasks by {spec.suite}, with lm-eval {lm_eval.__version__}")
    reported = Reported(progress)
    reported.gateway = Gateway(spec, headers, encoder, reported)
    documents = ask(spec, asked, reported.gateway)
    progress.message(_told(spec.suite, documents))
    progress.flush()
    digest = store.write_bytes(json.dumps(documents, ensure_ascii=False).encode())
    write_whole(folder.measured(spec.fencing_token), digest)


def served_within_s() -> float:
    """How long a job waits for its version to be served: ANTHESIS_SERVED_WITHIN_SECONDS."""
    return float(os.environ.get("ANTHESIS_SERVED_WITHIN_SECONDS") or 60.0)


def _tasks(spec: HarnessSpec, store: ArtifactStore) -> Iterator[Asked]:
    manager = find_tasks() if spec.needs_hub else None
    for task in spec.tasks:
        if task.dataset:
            for language, one in tasks_of_rows(spec, task, store).items():
                yield language, task.name, one
        else:
            assert manager is not None
            for name, one in known_tasks(spec, task, manager).items():
                yield language_of(task, name), name, one


def ask(spec: HarnessSpec, asked: list[Asked], gateway: Gateway) -> Documents:
    """What each question scored. Raises JobFailure where the gateway does not answer."""
    tasks = {task.task_name: task for _, _, task in asked}
    if len(tasks) < len(asked):  # results are by these names
        names = sorted(name for name, count in Counter(task.task_name for _, _, task in asked).items() if count > 1)
        raise JobFailure("BAD_TASK", f"task {names[0]!r} comes twice in {spec.suite}; give each another name", "suite")
    seeded(tasks.values(), SEED)
    try:
        results = evaluate(gateway, {"tasks": tasks, "groups": {}}, limit=spec.limit or None, bootstrap_iters=0)
    except (ClientError, TimeoutError) as error:
        what = f"the gateway stopped answering for {spec.version}: {type(error).__name__}: {error}"
        raise JobFailure("GATEWAY_ERROR", f"{what:.500}; the job's log has what it said") from error
    documents: Documents = {}
    for language, name, task in asked:
        scores = scores_of(name, task, results["samples"][task.task_name], spec.metrics)
        of_language = documents.setdefault(language, {})
        of_language |= {f"{name}/{metric}": pairs for metric, pairs in scores.items()}
    return documents


def _told(suite: str, documents: Documents) -> str:
    figures = [
        f"{metric} {language or '(no language)'} {_ratio(pairs):.4f}"
        for language, scores in sorted(documents.items())
        for metric, pairs in scores.items()
    ]
    more = f" and {len(figures) - 20} more" if len(figures) > 20 else ""
    return f"by {suite}: {', '.join(figures[:20])}{more}"


def _ratio(pairs: Pairs) -> float:
    scores, weights = zip(*pairs, strict=True)
    return float(sum(scores) / sum(weights))
