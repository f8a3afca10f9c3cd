"""What a project measures is its own, also of what is shared; what is shared has suites, gates and cards of its own."""

import pytest

from services.common.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied
from services.registry.alias_changes import NewChange
from services.registry.cards.service import Cards
from services.registry.evaluations.gates import Gates, NewGate
from services.registry.evaluations.service import Evaluations, NewEvaluation, NewResult
from services.registry.evaluations.suites import Metric, NewSuite, Suites
from services.registry.pages import PageRequest
from tests.support.projects import calling_for
from tests.support.registry_data import text_rows

QUIZ = [Metric(name="accuracy", higher_is_better=True)]
ALL = PageRequest(100, "")


def quiz(family: str) -> NewSuite:
    return NewSuite(family=family, kind="BENCHMARK", task="quiz", metrics=QUIZ, created_by="ada")


def by_rows(family: str, rows: str) -> NewSuite:
    return NewSuite(family=family, kind="BITS_PER_BYTE", datasets=[rows], created_by="ada")


def gate(suite: str) -> NewGate:
    return NewGate(alias="stable", suite=suite, max_regression_percent=1, created_by="ada")


def result_of(version: str, value: float) -> NewEvaluation:
    results = [NewResult(language="fr", metric="accuracy", value=value)]
    return NewEvaluation(version=version, suite="quiz", results=results, created_by="ada")


@pytest.fixture
async def suites(registry, database):
    """A shared version, alias, dataset and benchmark."""
    await registry.add_version("seedling")
    await registry.aliases.set("stable", "seedling@1", NewChange(principal="ada"))
    await registry.datasets.create("held-out", "TEXT", registry.artifacts.write_bytes(text_rows(4)))
    suites = Suites(database, registry.artifacts)
    await suites.create(quiz("quiz"))
    await suites.create(by_rows("texts", "held-out"))
    return suites


async def values(database, name: str) -> list[float]:
    found = await Evaluations(database).list_evaluations(name, "", ALL)
    return sorted(result.value for row in found.rows for result in row.results)


async def test_what_a_project_measures_of_a_shared_version_is_seen_by_it_alone(suites, database):
    evaluations = Evaluations(database)
    await evaluations.record(result_of("seedling@1", 0.1))
    for project, value in (("lab", 0.2), ("other", 0.3)):
        with calling_for(project):
            await evaluations.record(result_of("seedling@1", value))
    assert await values(database, "seedling") == [0.1, 0.2, 0.3]
    with calling_for("lab"):
        assert await values(database, "seedling") == [0.1, 0.2]


async def test_what_the_platform_measures_of_a_projects_version_is_the_projects(registry, suites, database):
    with calling_for("lab"):
        await registry.add_version("secret")
    await Evaluations(database).record(result_of("secret@1", 0.4))
    with calling_for("lab"):
        assert await values(database, "secret") == [0.4]
    with calling_for("other"):
        assert await values(database, "") == []


async def test_what_is_shared_gets_no_gate_no_card_and_no_suite_of_a_project(suites, database):
    await Gates(database).set(gate("texts"))
    with calling_for("lab"):
        for change in (
            Gates(database).set(gate("texts")),
            Gates(database).delete("stable"),
            Cards(database).update("seedling", "## Notes\n\nOurs.\n", "ada"),
            suites.create(by_rows("quiz", "held-out")),
        ):
            with pytest.raises(PermissionDenied, match="is not of project 'lab': it is shared"):
                await change
    assert (await Gates(database).get("stable")).suite == "texts@1"
    assert (await suites.get("quiz")).name == "quiz@1"


async def test_a_suite_is_of_one_project_and_its_name_is_taken_for_others(registry, suites):
    with calling_for("lab"):
        await registry.datasets.create("ours", "TEXT", registry.artifacts.write_bytes(text_rows(5)))
        assert (await suites.create(by_rows("mine", "ours"))).name == "mine@1"
        assert (await suites.create(by_rows("mine", "held-out"))).name == "mine@2"
    with calling_for("other"):
        with pytest.raises(AlreadyExists, match="'mine@1' is taken; choose another name"):
            await suites.create(by_rows("mine", "held-out"))
        with pytest.raises(NotFound):
            await suites.get("mine")
    with pytest.raises(FailedPrecondition, match="shared by all projects and would lead to what is of project 'lab'"):
        await suites.create(by_rows("everybodys", "ours"))
    with pytest.raises(FailedPrecondition, match="would lead to what is of project 'lab'"):
        await Gates(suites._database).set(gate("mine"))
