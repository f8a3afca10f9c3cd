import re

import pytest
from lm_eval.evaluator import evaluate

from services.trainer.failure import JobFailure
from services.trainer.harness.rows import tasks_of_rows
from tests.support.harness import ROWS, spec_of, task_of_rows
from tests.support.harness_model import Scripted

NO_QUESTIONS = [
    ({"question": "Is it?"}, r"row 1 does not suit 'quiz': 'answer' is undefined"),
    ({"question": "Is it?", "answer": ""}, "row 1 gives with 'quiz' no inputs"),
    ({"question": "Is it?", "answer": "perhaps"}, r"row 1 gives with 'quiz' the target 'perhaps', which is none of"),
    ({"question": "Is it?", "answer": 2}, "row 1 gives with 'quiz' the target '2', which is none of"),
    ([1], "row 1 is no JSON object"),
]
ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }} ||| yes",
    "{{ question.__init__.__globals__ }} ||| yes",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }} ||| yes",
    "{{ question.format.__self__.__class__ }} ||| yes",
]


def prompts(tmp_path, artifacts, rows=ROWS, *, num_fewshot=0, **changes):
    """What the harness asks for: (context, continuation), by language."""
    task = task_of_rows(artifacts, rows, **changes)
    found = tasks_of_rows(spec_of(tmp_path, task, num_fewshot=num_fewshot), task, artifacts)
    model = Scripted()
    for one in found.values():
        one.set_fewshot_seed(1234)
    evaluate(model, {"tasks": {one.task_name: one for one in found.values()}, "groups": {}}, bootstrap_iters=0)
    return found, model.asked


def test_rows_are_asked_by_language_with_each_of_their_choices(tmp_path, artifacts):
    found, asked = prompts(tmp_path, artifacts)
    assert list(found) == ["fr", "sw"]
    assert asked[:2] == [("Is 0 even?", " no"), ("Is 0 even?", " yes")]
    assert len(asked) == 2 * len(ROWS)


def test_examples_are_of_the_same_language_and_never_the_question_itself(tmp_path, artifacts):
    _, asked = prompts(tmp_path, artifacts, num_fewshot=2)
    by_language = {f"Is {number} even?": row["language"] for number, row in enumerate(ROWS)}
    for context, _ in asked:
        *examples, question = context.split("\n\n")
        names = [f"{example.partition('?')[0]}?" for example in examples]
        assert len(set(names)) == 2
        assert question not in names
        assert {by_language[name] for name in names} == {by_language[question]}


def test_an_answer_without_choices_counts_where_it_is_the_likeliest_text(tmp_path, artifacts):
    found, asked = prompts(tmp_path, artifacts, answer_choices="", language="xx")
    assert list(found) == ["xx"]
    assert asked[0] == ("Is 0 even?", " yes")
    assert list(found["xx"].aggregation()) == ["acc"]
    _, asked = prompts(tmp_path, artifacts, answer_choices="", num_fewshot=1)
    assert all(re.fullmatch(r"Is \d even\? (yes|no)\n\nIs \d even\?", context) for context, _ in asked)


def test_a_target_is_a_choice_or_its_number(tmp_path, artifacts):
    rows = [{"question": "?", "answer": 1, "options": ["a", "b"]}]
    found, asked = prompts(tmp_path, artifacts, rows, answer_choices="{{options | join(' ||| ')}}")
    assert asked == [("?", " a"), ("?", " b")]
    assert found[""].doc_to_target(found[""].eval_docs[0]) == 1


def test_what_a_row_holds_is_text_and_no_template(tmp_path, artifacts):
    rows = [{"question": "{{7 * 7}} [1, 2] {% raw %}", "answer": "yes"}]
    _, asked = prompts(tmp_path, artifacts, rows)
    assert asked[0] == ("{{7 * 7}} [1, 2] {% raw %}", " no")


def test_a_row_that_makes_no_question_fails_the_job_with_its_number(tmp_path, artifacts):
    for row, message in NO_QUESTIONS:
        with pytest.raises(JobFailure, match=f"dataset 'quiz-rows@1', {message}") as caught:
            prompts(tmp_path, artifacts, [row])
        assert caught.value.code == "BAD_DATA"
    for choices in ("yes", "yes ||| ", "{{missing}}"):
        with pytest.raises(JobFailure, match="row 1"):
            prompts(tmp_path, artifacts, answer_choices=choices)


def test_a_template_gets_nowhere_from_its_sandbox(tmp_path, artifacts):
    for jinja in ATTACKS:
        with pytest.raises(JobFailure, match=r"row 1 does not suit 'quiz'"):
            prompts(tmp_path, artifacts, jinja=jinja)


def test_rows_that_are_left_out_are_no_questions_and_too_few_give_no_examples(tmp_path, artifacts):
    _, asked = prompts(tmp_path, artifacts, jinja="{% if language == 'sw' %}{{question}} ||| {{answer}}{% endif %}")
    assert len(asked) == 6
    with pytest.raises(JobFailure, match="dataset 'quiz-rows@1' makes no question"):
        prompts(tmp_path, artifacts, jinja="{% if 0 %} ||| {% endif %}")
    with pytest.raises(JobFailure, match="has 3 questions in sw; num_fewshot=3 takes more"):
        prompts(tmp_path, artifacts, num_fewshot=3)
