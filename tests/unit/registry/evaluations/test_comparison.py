import numpy as np
import pytest
from scipy import stats

from services.common.errors import FailedPrecondition, NotFound
from services.registry.catalogue import seed_catalogue
from services.registry.evaluations.published import seed_published
from services.registry.evaluations.service import NewEvaluation, NewResult
from tests.support.measuring import texts

RNG = np.random.default_rng(0)
FRENCH, SWAHILI = 1.5 + 0.3 * RNG.standard_normal(30), 2.0 + 0.3 * RNG.standard_normal(30)


async def test_a_version_is_compared_text_by_text_as_scipy_does_and_corrected_for_the_languages(measuring):
    better, alike = FRENCH - 0.02 - 0.03 * RNG.standard_normal(30), SWAHILI + 0.03 * RNG.standard_normal(30)
    await measuring.measure("seedling@1", fr=texts(*FRENCH), sw=texts(*SWAHILI), de=texts(1.0, 1.1))
    await measuring.measure("seedling@2", fr=texts(*better), sw=texts(*alike), it=texts(1.0, 1.1))
    compared = await measuring.comparisons.compare("seedling@2", "seedling@1", "held-out")
    french, swahili = compared.differences
    assert [french.language, swahili.language] == ["fr", "sw"]  # what both have
    for found, one, base in ((french, better, FRENCH), (swahili, alike, SWAHILI)):
        expected = stats.ttest_rel(one, base)
        assert found.significance.test == "PAIRED_T"
        assert found.significance.p_value == pytest.approx(expected.pvalue, rel=1e-6)
        assert found.value == pytest.approx(one.mean() - base.mean())
    assert french.p_value_holm == pytest.approx(2 * french.significance.p_value)
    assert french.p_value_holm < 0.05 < swahili.p_value_holm


async def test_the_newest_evaluations_are_compared(measuring):
    await measuring.measure("seedling@1", fr=texts(9.0, 9.0))
    for version in ("seedling@1", "seedling@2"):
        await measuring.measure(version, fr=texts(1.0, 2.0))
    [difference] = (await measuring.comparisons.compare("seedling@2", "seedling@1", "held-out")).differences
    assert (difference.value, difference.significance.p_value) == (0.0, 1.0)


async def test_reported_results_are_compared_by_their_errors_and_those_without_have_no_p_value(measuring):
    await seed_catalogue(measuring.registry.database)
    await seed_published(measuring.registry.database)
    for version, value in (("seedling@1", 0.55), ("seedling@2", 0.62)):
        results = [
            NewResult(language="fr", metric="accuracy_median", value=value, n=100, standard_error=0.03),
            NewResult(language="fr", metric="accuracy_max", value=value),
        ]
        new = NewEvaluation(version=version, suite="xnli", results=results, created_by="ada")
        await measuring.evaluations.record(new)
    median, greatest = (await measuring.comparisons.compare("seedling@2", "seedling@1", "xnli")).differences
    deviation = 0.03 * np.sqrt(100)
    expected = stats.ttest_ind_from_stats(0.62, deviation, 100, 0.55, deviation, 100, equal_var=False)
    assert median.significance.test == "WELCH_T"
    assert median.significance.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert median.p_value_holm == median.significance.p_value  # one test was made
    assert (greatest.metric, greatest.significance, greatest.p_value_holm) == ("accuracy_max", None, None)


async def test_a_version_without_an_evaluation_is_told_how_to_get_one(measuring):
    await measuring.measure("seedling@1", fr=texts(1.0, 2.0))
    with pytest.raises(FailedPrecondition, match="`anthesis evaluations run seedling@2 --suite held-out@1`"):
        await measuring.comparisons.compare("seedling@1", "seedling@2", "held-out")
    with pytest.raises(NotFound, match="no suite 'tulips'"):
        await measuring.comparisons.compare("seedling@1", "seedling@2", "tulips")
