"""Suites of lm-evaluation-harness: what they may ask, and what jobs measure by them."""

import asyncio
import json

import pytest
from alembic import command
from huggingface_hub import ModelCard
from scipy import stats
from sqlalchemy import text

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.registry.database import alembic_config
from services.registry.evaluations.harness import LM_EVAL, HarnessTask
from services.registry.evaluations.service import NewEvaluation, NewResult
from services.registry.evaluations.suites import Metric
from services.registry.leases import Measured
from services.registry.pages import PageRequest

JINJA, CHOICES = "{{question}} ||| {{answer}}", "no ||| yes"
ROWS = [{"question": "Is it?", "answer": "yes", "language": language} for language in ("fr", "sw")]


def rows_task(**changes):
    return HarnessTask(**{"name": "quiz", "dataset": "quiz-rows", "jinja": JINJA, "answer_choices": CHOICES} | changes)


NO_SUITES = [
    ({"tasks": []}, "has 0 tasks; name 1 to 100"),
    ({"tasks": [HarnessTask(name="xcopa_et")] * 2}, "task 'xcopa_et' comes twice"),
    *(
        ({"tasks": [HarnessTask(name=name)]}, "task name .* is not allowed")
        for name in ("", "../task", "/tmp/task.yaml", "https://a.b/task.yaml", "a b", "*", "x" * 101, "-x", "{{1}}")
    ),
    ({"tasks": [HarnessTask(name="xcopa_et", jinja=JINJA)]}, "'xcopa_et' has a template and no dataset"),
    ({"tasks": [HarnessTask(name="xcopa_et", language="\n")]}, r"language '\\n' is not allowed"),
    ({"tasks": [rows_task(jinja="{{question}}")]}, r"'quiz': its template has no \|\|\|"),
    ({"tasks": [rows_task(jinja="{{question ||| {{answer}}")]}, "'quiz': its template is no Jinja"),
    ({"tasks": [rows_task(jinja="{% include 'a' %} ||| {{answer}}")]}, "loads another template"),
    ({"tasks": [rows_task(jinja="x" * 20_001)]}, "more than 20000 characters"),
    ({"tasks": [rows_task(jinja="{{premise}} ||| {{answer}}")]}, "reads 'premise', which no row has"),
    ({"tasks": [rows_task(dataset="held-out")]}, "'held-out@1' is TEXT; templates render FIELDS and MULTITASK rows"),
    ({"num_fewshot": 65}, r"num_fewshot=65 is out of range; choose a value in \[0, 64\]"),
    ({"limit": -1}, "limit=-1 is out of range"),
    ({"task": "XNLI"}, "task='XNLI' is a BENCHMARK's"),
    ({"metrics": [Metric(name="a/b", higher_is_better=True)]}, "each once and without '/'"),
    ({"metrics": [Metric(name="acc", higher_is_better=True)] * 2}, "each once and without '/'"),
    ({"datasets": ["held-out"]}, "are for BITS_PER_BYTE"),
    ({"sequence_length": 64}, "are for BITS_PER_BYTE"),
]


@pytest.fixture
async def asking(measuring):
    """With the suite `quiz@1`, of rows in French and Swahili and of a task of the harness."""
    digest = measuring.registry.artifacts.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    await measuring.registry.datasets.create("quiz-rows", "FIELDS", digest)
    await add_quiz(measuring)
    return measuring


async def add_quiz(measuring, family="quiz", **changes):
    values = {"kind": LM_EVAL, "datasets": [], "tasks": [rows_task(), HarnessTask(name="xcopa_et")]}
    return await measuring.add_suite(family, **values | changes)


def scored(*scores):
    return [(score, 1) for score in scores]


async def measure(asking, version, **by_language):
    """A job measures `version` by the quiz; scores by language and metric."""
    asking.registry.clock.advance(1)
    job = await asking.submit(version, "quiz")
    await asking.registry.leases.acquire(job.id, "w1")
    return await asking.registry.leases.finish(job.id, 1, Measured(asking.documents(**by_language)))


async def test_a_suite_keeps_tasks_with_the_rows_as_they_are(asking):
    suite = await asking.suites.get("quiz")
    dataset = await asking.registry.datasets.get("quiz-rows")
    assert [kept["digest"] for kept in suite.datasets] == [dataset.digest]
    mine, theirs = suite.harness["tasks"]
    assert mine == {
        "name": "quiz",
        "language": "",
        "dataset": "quiz-rows@1",
        "jinja": JINJA,
        "answer_choices": CHOICES,
    }
    assert (theirs["name"], theirs["dataset"]) == ("xcopa_et", "")
    better = {metric["name"]: metric["higher_is_better"] for metric in suite.metrics}
    assert better == {"acc": True, "acc_norm": True, "exact_match": True, "bits_per_byte": False}
    assert (await asking.suites.get("held-out")).harness is None


async def test_the_same_is_the_same_version_and_something_else_the_next(asking):
    assert (await add_quiz(asking)).name == "quiz@1"
    assert (await add_quiz(asking, num_fewshot=2)).name == "quiz@2"
    assert (await add_quiz(asking, num_fewshot=2, limit=10)).name == "quiz@3"


async def test_what_the_harness_is_not_asked_is_refused_and_nothing_made(asking):
    for changes, message in NO_SUITES:
        with pytest.raises(InvalidArgument, match=message):
            await add_quiz(asking, "bad", **changes)
        with pytest.raises(NotFound):
            await asking.suites.get("bad")
    with pytest.raises(NotFound, match="no dataset 'tulips'"):
        await add_quiz(asking, "bad", tasks=[rows_task(dataset="tulips")])
    for changes in ({"tasks": [HarnessTask(name="a")]}, {"num_fewshot": 1}, {"limit": 1}):
        with pytest.raises(InvalidArgument, match="are for LM_EVAL"):
            await asking.add_suite("bad", **changes)


async def test_a_job_measures_and_each_task_has_its_mean_with_n_and_a_standard_error(asking):
    scores = scored(1, 0, 1, 1)
    job = await measure(asking, "seedling@1", sw={"quiz/acc": scores}, et={"xcopa_et/acc": scored(1), "z/acc": scores})
    assert job.state == "SUCCEEDED"
    [found] = (await asking.evaluations.list_evaluations("seedling@1", "quiz", PageRequest())).rows
    assert [(result.language, result.metric) for result in found.results] == [
        ("et", "xcopa_et/acc"),
        ("et", "z/acc"),
        ("sw", "quiz/acc"),
    ]
    assert (found.results[0].value, found.results[0].n, found.results[0].standard_error) == (1.0, 1, None)
    assert (found.results[2].value, found.results[2].n) == (0.75, 4)
    assert found.results[2].standard_error == pytest.approx(stats.sem([1, 0, 1, 1]))


async def test_two_versions_are_compared_question_by_question(asking):
    base, better = [1, 0, 0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 1, 1, 1]
    bits, fewer = [(10.0, 8.0), (20.0, 8.0)], [(9.0, 8.0), (18.0, 8.0)]
    await measure(asking, "seedling@1", fr={"quiz/acc": scored(*base), "texts/bits_per_byte": bits})
    await measure(asking, "seedling@2", fr={"quiz/acc": scored(*better), "texts/bits_per_byte": fewer})
    accuracy, rate = (await asking.comparisons.compare("seedling@2", "seedling@1", "quiz")).differences
    assert (accuracy.metric, accuracy.higher_is_better, accuracy.value) == ("quiz/acc", True, 0.375)
    assert (rate.metric, rate.higher_is_better) == ("texts/bits_per_byte", False)
    assert accuracy.significance.test == "PAIRED_T"
    assert accuracy.significance.p_value == pytest.approx(stats.ttest_rel(better, base).pvalue, rel=1e-6)
    assert rate.value == pytest.approx((27 - 30) / 16)


async def test_what_the_suite_does_not_measure_is_refused_and_the_job_still_runs(asking):
    job = await asking.submit("seedling@1", "quiz")
    await asking.registry.leases.acquire(job.id, "w1")
    for documents in ({"fr": {"quiz/f1": scored(1)}}, {"fr": [(1, 8)]}, {"fr": {"acc": scored(1)}}):
        with pytest.raises(InvalidArgument, match=r"which suite quiz@1 does not measure"):
            await asking.registry.leases.finish(job.id, 1, Measured(asking.documents(**documents)))
    for documents in ({"fr": {}}, {"fr": {"quiz/acc": [(1, 0)]}}, {"fr": {"quiz/acc": {}}}, {"fr": {"quiz/acc": 1}}):
        with pytest.raises(InvalidArgument, match="are not"):
            await asking.registry.leases.finish(job.id, 1, Measured(asking.documents(**documents)))
    assert (await asking.registry.jobs.get(job.id)).state == "RUNNING"
    texts = await asking.submit("seedling@1")
    await asking.registry.leases.acquire(texts.id, "w1")
    with pytest.raises(InvalidArgument, match="which suite held-out@1 does not measure"):
        await asking.registry.leases.finish(texts.id, 1, Measured(asking.documents(fr={"quiz/acc": scored(1)})))


async def test_what_needs_a_version_that_is_served_measures_behind_no_fine_tune_and_no_gate(asking):
    spec = await asking.registry.fine_tune_spec(evaluate_with="quiz")
    with pytest.raises(InvalidArgument, match="suite quiz@1 asks a version that is served"):
        await asking.registry.submit(spec=spec)
    await asking.registry.set_alias("flower", "seedling@1")
    with pytest.raises(InvalidArgument, match="suite quiz@1 asks a version that is served"):
        await asking.set_gate(suite="quiz")


async def test_results_from_elsewhere_are_refused_as_jobs_measure_them(asking):
    result = NewResult(language="fr", metric="quiz/acc", value=1.0)
    new = NewEvaluation(version="seedling", suite="quiz", results=[result], created_by="ada")
    with pytest.raises(InvalidArgument, match="quiz@1 is of lm-evaluation-harness, which a job measures"):
        await asking.evaluations.record(new)
    with pytest.raises(FailedPrecondition, match="`anthesis evaluations run seedling@2 --suite quiz@1`"):
        await asking.comparisons.compare("seedling@2", "seedling@2", "quiz")


async def test_a_version_is_not_asked_what_it_has_learnt(asking):
    await asking.registry.add_version("learnt", datasets=["quiz-rows"])
    with pytest.raises(FailedPrecondition, match="learnt@1 is trained on 'quiz-rows@1', which has the same rows"):
        await asking.submit("learnt", "quiz")


async def test_the_older_release_gets_its_suites_and_jobs_without_what_it_cannot_read(asking):
    database = asking.registry.database
    asked = await measure(asking, "seedling@1", fr={"quiz/acc": scored(1, 0)})
    measured = await asking.measure("seedling@1", fr=[(10, 8)])
    for direction, revision in (("downgrade", "0015"), ("upgrade", "head")):
        await asyncio.to_thread(getattr(command, direction), alembic_config(database.url), revision)
        async with database.read() as session:
            for table, column, kept in (
                ("evaluation_suites", "name", ["held-out@1"]),
                ("evaluations", "job_id", [measured.id]),
                ("jobs", "id", [measured.id]),
                ("evaluation_results", "metric", ["bits_per_byte"]),
            ):
                found = await session.scalars(text(f"SELECT {column} FROM {table}"))  # noqa: S608
                assert list(found) == kept, table
    assert asked.id != measured.id
    assert (await add_quiz(asking)).name == "quiz@1"


async def test_a_card_shows_the_newest_results_by_each_suite(asking):
    for scores in (scored(0, 0), scored(1, 0)):
        await measure(asking, "seedling@1", fr={"quiz/acc": scores})
    job = await asking.measure("seedling@1", sw=[(12, 8)])
    card = await asking.registry.cards.get("seedling@1")
    found = ModelCard(card.markdown).data.eval_results
    shown = [(row.dataset_name, row.dataset_config, row.metric_type, row.metric_value) for row in found]
    assert shown == [("held-out@1", "sw", "bits_per_byte", 1.5), ("quiz@1", "fr", "quiz/acc", 0.5)]
    assert f"by {job.id}" in card.markdown
