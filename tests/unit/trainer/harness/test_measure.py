"""Tasks to documents, with a model that answers as told; the harness is real, data of its tasks come from memory."""

import math
from pathlib import Path

import datasets
import lm_eval
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from services.trainer.failure import JobFailure
from services.trainer.harness.known import find_tasks, known_tasks, language_of
from services.trainer.harness.measure import ask
from services.trainer.harness.rows import tasks_of_rows
from tests.support.harness import known_task, spec_of, task_of_rows
from tests.support.harness_model import Scripted

XCOPA = [
    {
        "premise": "A.",
        "choice1": "B.",
        "choice2": "C.",
        "question": question,
        "label": label,
        "idx": 0,
        "changed": False,
    }
    for question, label in (("cause", 0), ("effect", 1), ("effect", 0))
]


@pytest.fixture(scope="module")
def manager():
    """Of one folder of the harness's: it takes ten seconds to look through all."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "xcopa"
    return find_tasks(include_path=str(folder), include_defaults=False)


@pytest.fixture
def hub(monkeypatch):
    """Whatever is asked of the hub is three rows of XCOPA."""
    rows = datasets.Dataset.from_list(XCOPA)
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: {"validation": rows, "test": rows})


def test_each_question_has_its_score_and_a_limit_leaves_the_rest_out(tmp_path, artifacts):
    task = task_of_rows(artifacts)
    says_yes = Scripted(lambda _, continuation: (-1.0 if continuation == " yes" else -2.0, False))
    for limit, french in ((0, [1, 0, 1, 0]), (3, [1, 0, 1])):
        spec = spec_of(tmp_path, task, limit=limit)
        asked = [(language, "quiz", one) for language, one in tasks_of_rows(spec, task, artifacts).items()]
        documents = ask(spec, asked, says_yes)
        assert documents["fr"]["quiz/acc"] == [(score, 1.0) for score in french]
        assert documents["sw"].keys() == {"quiz/acc", "quiz/acc_norm"}


def test_a_task_of_the_harness_is_asked_with_its_own_code_and_its_language_is_its_names(tmp_path, manager, hub):
    task = known_task("xcopa_et")
    spec = spec_of(tmp_path, task)
    found = known_tasks(spec, task, manager)
    model = Scripted(lambda _, continuation: (-1.0 if continuation == " b." else -2.0, False))
    documents = ask(spec, [(language_of(task, name), name, one) for name, one in found.items()], model)
    assert documents == {"et": {"xcopa_et/acc": [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)]}}
    assert model.asked[0] == ("A sest", " b.")


def test_a_group_is_all_of_its_tasks(tmp_path, manager, hub):
    found = known_tasks(spec_of(tmp_path), known_task("xcopa"), manager)
    assert len(found) == 11
    assert {language_of(known_task("xcopa"), name) for name in found} >= {"et", "sw", "zh"}
    assert language_of(known_task("xcopa", "xx"), "xcopa_et") == "xx"
    assert language_of(known_task("arc_easy"), "arc_easy") == ""


def test_examples_are_as_many_as_asked_for_unless_the_task_fixes_none(tmp_path, manager, hub):
    for name, asked, expected in (("xcopa_et", 2, 2), ("xcopa_et", 0, 0)):
        [task] = known_tasks(spec_of(tmp_path, num_fewshot=asked), known_task(name), manager).values()
        assert task.get_config("num_fewshot") == expected


def test_a_name_that_is_a_path_or_unknown_is_no_task(tmp_path, manager):
    for name in ("no_such_task", "task.yaml", str(tmp_path)):
        with pytest.raises(JobFailure, match=f"lm-evaluation-harness has no task '{name}'") as caught:
            known_tasks(spec_of(tmp_path), known_task(name), manager)
        assert caught.value.code == "BAD_TASK"


def test_a_task_that_runs_what_a_model_writes_is_refused(tmp_path, manager, monkeypatch, hub):
    monkeypatch.setattr(ConfigurableTask, "UNSAFE_CODE", True, raising=False)
    with pytest.raises(JobFailure, match="'xcopa_et' runs code that a model writes; leave it out"):
        known_tasks(spec_of(tmp_path), known_task("xcopa_et"), manager)


def test_tasks_that_are_code_of_their_own_are_not_there(tmp_path):
    """scrolls_quality fetches its metric from a pull request on the hub, and runs it."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "scrolls"
    assert "scrolls_quality" in TaskManager(include_path=str(folder), include_defaults=False).task_index
    manager = find_tasks(include_path=str(folder), include_defaults=False)
    for name in ("scrolls_quality", "scrolls"):
        with pytest.raises(JobFailure) as caught:
            known_tasks(spec_of(tmp_path), known_task(name), manager)
        assert caught.value.code == "BAD_TASK"


def test_a_task_that_comes_twice_is_refused_before_it_is_asked(tmp_path, manager, hub):
    task = next(iter(known_tasks(spec_of(tmp_path), known_task("xcopa_et"), manager).values()))
    with pytest.raises(JobFailure, match="'xcopa_et' comes twice"):
        ask(spec_of(tmp_path), [("et", "xcopa", task), ("et", "xcopa_et", task)], Scripted())


def test_a_task_without_its_data_says_that_they_come_from_the_hub(tmp_path, manager, monkeypatch):
    def unreachable(**_):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(JobFailure, match="ConnectionError: no route; its data come from the hub"):
        known_tasks(spec_of(tmp_path), known_task("xcopa_et"), manager)


def test_bits_per_byte_are_a_ratio_and_what_is_no_mean_is_left_out(tmp_path):
    rows = datasets.Dataset.from_list([{"text": "abc"}, {"text": "é"}])
    config = {
        "task": "texts",
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": name} for name in ("bits_per_byte", "byte_perplexity")],
    }
    spec = spec_of(tmp_path, metrics=("bits_per_byte", "byte_perplexity"))
    model = Scripted(lambda _, text: (-float(len(text)) * math.log(2), False))
    documents = ask(spec, [("", "texts", ConfigurableTask(config=config))], model)
    assert documents == {"": {"texts/bits_per_byte": [(3.0, 3.0), (1.0, 2.0)]}}
    spec = spec_of(tmp_path, metrics=("byte_perplexity",))
    with pytest.raises(JobFailure, match="measures bits_per_byte, byte_perplexity, of which the suite keeps byte_per"):
        ask(spec, [("", "texts", ConfigurableTask(config=config))], model)
