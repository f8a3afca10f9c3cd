"""Reference rows, and people's own beside them."""

import pytest
from sqlalchemy import func, select

from services.common.errors import InvalidArgument, NotFound
from services.registry.catalogue import read_catalogue, seed_catalogue
from services.registry.evaluations.published import seed_published
from services.registry.evaluations.service import NewEvaluation, NewResult
from services.registry.pages import PageRequest
from services.registry.tables import Evaluation, EvaluationResult, EvaluationSuite, ModelVersion
from services.registry.versions import NewVersion
from tests.support.registry_data import store_checkpoint

ACCURACY = NewResult(language="en", metric="acc", value=0.58, n=2376, standard_error=0.0101)
NO_RESULTS = [
    ([], "0 results; give 1 to 10000"),
    ([ACCURACY, ACCURACY], "acc of language 'en' comes twice"),
    ([NewResult(language="en", metric="f1", value=1.0)], "'f1' is not the suite's; choose acc"),
    ([NewResult(language="en", metric="acc", value=float("nan"))], "is nan, which is no number to compare"),
    ([NewResult(language="en", metric="acc", value=1.0, standard_error=-1.0)], "=-1.0; give 0 or more"),
    ([NewResult(language="en", metric="acc", value=1.0, n=0)], "n=0; give the number of examples"),
    ([NewResult(language="en", metric="acc", value=1.0, n=1 << 63)], "give the number of examples"),
    ([NewResult(language="a\nb", metric="acc", value=1.0)], "language .* is not allowed"),
    ([NewResult(language="x" * 101, metric="acc", value=1.0)], "at most 100 printable characters"),
]


@pytest.fixture
async def seeded(measuring):
    await seed_catalogue(measuring.registry.database)
    await seed_published(measuring.registry.database)
    return measuring


async def listed(measuring, name="", suite="", **options):
    page = await measuring.evaluations.list_evaluations(name, suite, PageRequest(size=200), **options)
    return page.rows


async def record(measuring, version="seedling@1", suite="arc_easy", results=(ACCURACY,), **changes):
    new = NewEvaluation(version=version, suite=suite, results=results, **({"created_by": "bob"} | changes))
    return await measuring.evaluations.record(new)


async def counts(measuring):
    async with measuring.registry.database.read() as session:
        tables = (EvaluationSuite, Evaluation, EvaluationResult)
        return [await session.scalar(select(func.count()).select_from(table)) for table in tables]


async def test_every_published_model_is_there_with_its_figures_and_their_source(seeded):
    rows = await listed(seeded, suite="xnli")
    assert {found.evaluation.model for found in rows} == {published.name for published in read_catalogue()}
    by_model = {found.evaluation.model: found for found in rows}
    bloomz = by_model["bigscience/bloomz"]
    assert bloomz.evaluation.source == "PUBLISHED"
    assert "bigscience-workshop/xmtf@5caa1b12" in bloomz.evaluation.reference
    values = {(result.language, result.metric): result.value for result in bloomz.results}
    assert values["ar", "accuracy_median"] == 54.38
    assert values["ar", "accuracy_max"] == 60.68
    assert len(values) == 2 * 15
    humaneval = (await listed(seeded, "bigscience/bloom", "humaneval"))[0]
    assert {result.metric: result.value for result in humaneval.results} == {
        "pass@1": 15.52,
        "pass@10": 32.2,
        "pass@100": 55.45,
    }


async def test_what_nobody_has_verified_is_not_there(seeded):
    assert "wmt14" not in {found.suite.family for found in await listed(seeded)}


async def test_seeding_again_changes_nothing(seeded):
    before = await counts(seeded)
    await seed_published(seeded.registry.database)
    assert await counts(seeded) == before


async def test_own_results_stand_beside_the_published_ones_of_what_a_version_comes_from(seeded):
    stored = store_checkpoint(seeded.registry.artifacts)
    models = seeded.registry.versions
    base = await models.create(
        NewVersion(model="rose", licence="mit", files=stored.files, tokenizer_digest=stored.tokenizer_digest)
    )
    as_bloom = {"name": "bigscience/bloom@1", "model": "bigscience/bloom"}  # whose shape is not a test's to have
    values = {column.name: getattr(base, column.name) for column in ModelVersion.__table__.columns}
    async with seeded.registry.database.write() as session:
        session.add(ModelVersion(**{**values, **as_bloom, "id": None}))
    child = await models.create(
        NewVersion(
            model="tuned", parent="bigscience/bloom@1", files=stored.files, tokenizer_digest=stored.tokenizer_digest
        )
    )
    mine = await record(seeded, child.name, reference="lm-eval 0.4, five shots")
    shown = await listed(seeded, "tuned", "arc_easy", beside_published=True)
    assert [(found.evaluation.model, found.evaluation.source) for found in shown] == [
        ("bigscience/bloom", "PUBLISHED"),
        ("tuned", "REPORTED"),
    ]
    assert shown[1].evaluation.id == mine.evaluation.id
    assert (shown[1].evaluation.created_by, shown[1].evaluation.reference) == ("bob", "lm-eval 0.4, five shots")
    result = shown[1].results[0]
    assert (result.value, result.n, result.standard_error) == (0.58, 2376, 0.0101)
    assert (shown[0].results[0].value, shown[0].results[0].standard_error) == (0.726, None)
    assert [found.evaluation.source for found in await listed(seeded, "tuned@1", "arc_easy")] == ["REPORTED"]
    with_published = await listed(seeded, "tuned@1", "arc_easy", beside_published=True)
    assert [found.evaluation.model for found in with_published] == ["bigscience/bloom", "tuned"]


async def test_evaluations_come_in_pages_the_newest_first(seeded):
    made = []
    for _ in range(3):
        seeded.registry.clock.advance(1)
        made.append((await record(seeded)).evaluation.id)
    first = await seeded.evaluations.list_evaluations("seedling", "", PageRequest(size=2))
    rest = await seeded.evaluations.list_evaluations("seedling", "", PageRequest(token=first.next_token))
    assert [found.evaluation.id for found in (*first.rows, *rest.rows)] == made[::-1]


async def test_what_is_no_result_is_refused_and_nothing_recorded(seeded):
    before = await counts(seeded)
    for results, message in NO_RESULTS:
        with pytest.raises(InvalidArgument, match=message):
            await record(seeded, results=results)
    assert await counts(seeded) == before


async def test_bits_per_byte_are_measured_and_not_told(seeded):
    with pytest.raises(InvalidArgument, match="measures: `anthesis evaluations run VERSION --suite held-out@1`"):
        await record(seeded, suite="held-out")
    with pytest.raises(NotFound, match="no suite 'tulips'"):
        await record(seeded, suite="tulips")
    with pytest.raises(NotFound):
        await record(seeded, version="tulip@1")
    with pytest.raises(InvalidArgument, match="write one plain line"):
        await record(seeded, reference="two\nlines")
