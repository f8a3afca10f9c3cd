"""Cards as the Hub's own library reads them, and as people write on them."""

import asyncio

import pytest
from huggingface_hub import ModelCard

from services.common.auth import Principal
from services.common.errors import Aborted, InvalidArgument, NotFound
from services.registry.cards import document, front_matter
from services.registry.cards.service import Cards
from services.registry.catalogue import seed_catalogue
from services.registry.database import Database
from services.registry.job_energy import Energy
from services.registry.job_specs import TrainOptions
from services.registry.leases import Succeeded
from services.registry.licences.builtin import BUILTIN, digest_text, read_text
from services.registry.licences.terms import use_restrictions
from services.registry.models import NewModel
from tests.support.registry_data import store_checkpoint

RAIL = "bigscience-rail-1.0"
TEXTS = {licence.id: read_text(licence) for licence in BUILTIN}


async def read(registry, name):
    """The card, and what the Hub makes of it."""
    card = await registry.cards.get(name)
    return card, ModelCard(card.markdown)


def section(card, title):
    return next(section for section in card.sections if section.title == title)


async def fine_tuned(registry):
    """A version that a job made from a RAIL model, validated in two languages."""
    await registry.models.create(NewModel(name="lab/bloom", licence=RAIL, languages=["fr", "zhs", "Python", "no"]))
    await registry.add_version("lab/bloom", licence=RAIL)
    await registry.licences.accept(Principal("key", "ada", "trainer"), RAIL, digest_text(TEXTS[RAIL]))
    options = TrainOptions(steps=10, learning_rate=1e-4)
    await registry.add_dataset("held-out")
    spec = await registry.fine_tune_spec(base="lab/bloom", options=options, validation_datasets=["held-out"])
    await registry.models.create(NewModel(name="sprout", licence=RAIL, languages=["fr", "no"], tags=["garden"]))
    job = await registry.submit(spec=spec)
    await registry.leases.acquire(job.id, "w1")
    losses = [
        {"dataset": "held-out", "language": language, "bits_per_byte": value, "num_bytes": 9}
        for language, value in (("fr", 1.25), ("sw", 2.5), ("", "nan"))
    ]
    progress = {"step": 10, "validation": losses, "validation_step": 10, "time": "2026-01-01T00:00:00+00:00"}
    registry.clock.advance(3600)
    made = store_checkpoint(registry.artifacts)
    await registry.leases.finish(job.id, 1, Succeeded(made.files), [progress])
    await registry.tags.update("sprout@1", ["no"], [])
    return job


async def test_the_hubs_parser_reads_all_that_the_registry_knows(registry):
    job = await fine_tuned(registry)
    card, hub = await read(registry, "sprout@1")
    data = hub.data.to_dict()
    assert data["language"] == ["fr", "no"]  # text, and not YAML's false
    assert data["license"] == "bigscience-bloom-rail-1.0"
    assert data["base_model"] == "lab/bloom"
    assert data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["tasks@1"]
    assert data["tags"] == ["bloom", "garden", "no"]
    assert (data["pipeline_tag"], data["library_name"]) == ("text-generation", "transformers")
    found = [(row.dataset_name, row.dataset_config, row.metric_type, row.metric_value) for row in hub.data.eval_results]
    assert found == [("held-out", "fr", "bits_per_byte", 1.25), ("held-out", "sw", "bits_per_byte", 2.5)]
    assert hub.data.model_name == "sprout"
    emitted = data["co2_eq_emissions"]
    assert emitted["emissions"] == pytest.approx(1000 * job.estimate["co2_kg"], rel=1e-3)
    assert emitted["training_type"] == "fine-tuning"
    assert hub.data.to_dict() == ModelCard(str(hub)).data.to_dict()
    assert card.name == "sprout@1"


async def test_its_sections_say_whence_how_and_on_what_terms(registry):
    job = await fine_tuned(registry)
    card, _ = await read(registry, "sprout@1")
    assert use_restrictions(TEXTS[RAIL]).strip() in section(card, "Intended use and restrictions").generated
    assert "| `tasks@1` | MULTITASK | 3 |" in section(card, "Training data").generated
    procedure = section(card, "Training procedure").generated
    assert f"Job `{job.id}`, from `lab/bloom@1`, 2026-01-01 00:00 to 2026-01-01 01:00 UTC" in procedure
    assert "| learning_rate | 0.0001 |" in procedure
    assert r"| `held-out` | sw | bits\_per\_byte | 2.5000 |" in section(card, "Evaluation").generated
    assert "kWh" in section(card, "Environmental impact").generated
    lineage = section(card, "Lineage").generated.splitlines()
    assert lineage == [
        f"- `sprout@1`, {RAIL}, trained by `{job.id}` from `lab/bloom@1`",
        f"- `lab/bloom@1`, {RAIL}, imported",
    ]
    assert 'client.complete("sprout@1"' in section(card, "How to use").generated


MEASURED = Energy(joules={"package_joules": 3.6e6, "gpu_joules": 9e6}, unmeasured=("GPUs: <none>",))


async def energy_section(registry, energy):
    """Of a version whose job had two attempts, of which the second has reported `energy`."""
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.release(job.id, 1, "stopped")
    await registry.leases.acquire(job.id, "w2")
    await registry.leases.renew(job.id, 2, energy=energy)
    await registry.leases.finish(job.id, 2, Succeeded(store_checkpoint(registry.artifacts).files))
    return section(await registry.cards.get("sprout@1"), "Environmental impact").generated


async def test_a_card_says_what_energy_was_measured_and_what_not(registry):
    measured, planned = (await energy_section(registry, MEASURED)).split("\n\n")
    assert measured == (
        "Measured: 3.5 kWh (processors 1, GPUs 2.5), by the machines' own counters of processors and GPUs as a whole, "
        "so with what else ran on them. Not in it: GPUs: \\<none\\>; 1 of 2 attempts; memory; power supplies, "
        "cooling, disks and network."
    )
    assert "estimated by Anthesis' planner before the run, not measured" in planned


async def test_a_card_says_why_nothing_was_measured(registry):
    reason = "processors: no counter is in /sys"
    assert f"Nothing was measured ({reason})." in await energy_section(registry, Energy(unmeasured=(reason,)))


async def test_languages_are_as_the_hub_spells_them(registry):
    await fine_tuned(registry)
    _, hub = await read(registry, "lab/bloom")
    assert hub.data.language == ["code", "fr", "no", "zh"]


async def test_the_check_notices_front_matter_that_is_no_mapping_of_it(registry, monkeypatch):
    """The planted mistake: languages as YAML reads them bare, where "no" is false."""
    await fine_tuned(registry)
    monkeypatch.setattr(front_matter.yaml, "safe_dump", lambda data, **_: f"language: [{', '.join(data['language'])}]")
    _, hub = await read(registry, "sprout@1")
    assert hub.data.language == ["fr", False]


async def test_several_licences_and_an_admins_own_are_other_with_their_names(registry):
    await registry.add_version("one", licence="mit")
    await registry.add_version("two", licence="apache-2.0")
    await registry.add_version("merged", licence="", parent="one", other_parents=["two"])
    _, hub = await read(registry, "merged")
    data = hub.data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "apache-2.0 AND mit", "NOTICE")
    assert (data["base_model"], data["base_model_relation"]) == (["one", "two"], "merge")
    assert "co2_eq_emissions" not in data
    assert "model-index" not in data


async def test_a_model_without_weights_has_a_card(registry):
    await seed_catalogue(registry.database)
    card, hub = await read(registry, "bigscience/bloomz-560m")
    assert hub.data.base_model == "bigscience/bloom-560m"
    assert "anthesis models import bigscience/bloomz-560m" in section(card, "How to use").generated
    assert card.generation == 0


async def test_text_of_users_in_what_is_generated_is_no_markup(registry):
    evil = "<script>x</script> ![p](http://evil) | `c` <!-- registry: end -->\n## Evaluation"
    await registry.models.create(NewModel(name="seedling", licence="mit", description=evil, languages=["<b>", "a|b"]))
    await registry.add_version("seedling", licence="", created_by="ada")
    card, hub = await read(registry, "seedling")
    made = section(card, "").generated
    assert "\\<script\\>" in made
    assert "\\!\\[p\\]" in made
    assert "\n## Evaluation" not in made
    assert hub.data.language == ["code"]
    own = document.parse(card.markdown, "seedling", [one.title for one in card.sections]).own
    assert own == {}


async def test_what_people_wrote_stays_and_what_is_generated_follows_the_registry(registry):
    await registry.add_version()
    await registry.cards.update(
        "seedling", "For gardens.\n\n## Evaluation\n\nBloomed twice.\n\n## Thanks\n\nTo rain.", "ada"
    )
    card, hub = await read(registry, "seedling")
    assert section(card, "Evaluation").text == "Bloomed twice."
    assert [one.title for one in card.sections][-1] == "Thanks"
    assert (card.generation, card.updated_by, card.update_time) == (1, "ada", registry.clock.now)
    assert "seedling@1" in section(card, "").generated
    await registry.add_version()
    await registry.tags.update("seedling", ["gold"], [])
    card, hub = await read(registry, "seedling")
    assert section(card, "").text == "For gardens."
    assert "seedling@2" in section(card, "").generated
    assert hub.data.tags == ["bloom", "gold"]
    assert "Bloomed twice." in hub.text


async def test_a_card_that_is_handed_back_as_it_is_changes_nothing(registry):
    await fine_tuned(registry)
    await registry.cards.update("sprout", "For all.", "ada")
    await registry.cards.update("sprout@1", "## Evaluation\n\nMine.", "ada")
    for name in ("sprout", "sprout@1"):
        before = await registry.cards.get(name)
        assert await registry.cards.update(name, before.markdown, "bob") == before
        edited = before.markdown.replace("## Lineage", "## Lineage\n\nOld stock.")
        after = await registry.cards.update(name, edited, "bob")
        assert (after.generation, section(after, "Lineage").text) == (2, "Old stock.")


async def test_a_versions_card_has_its_models_text_where_it_has_none(registry):
    await registry.add_version()
    await registry.cards.update("seedling", "For all.\n\n## Evaluation\n\nAll good.", "ada")
    await registry.cards.update("seedling@1", "## Evaluation\n\nThis one is better.", "ada")
    card = await registry.cards.get("seedling@1")
    assert (section(card, "").text, section(card, "").inherited) == ("", "For all.")
    assert (section(card, "Evaluation").text, section(card, "Evaluation").inherited) == ("This one is better.", "")
    await registry.cards.update("seedling@1", "", "ada")
    card = await registry.cards.get("seedling@1")
    assert (section(card, "Evaluation").inherited, card.generation) == ("All good.", 2)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("license: apache-2.0", "license: mit", "the front matter is made from what the registry knows"),
        ("imported", "made by me", "section 'Lineage': what stands between the registry's marks was changed"),
        ("## Lineage", "## Origin", "section 'Origin': what stands between the registry's marks was changed"),
    ],
)
async def test_a_change_that_would_be_lost_is_refused(registry, old, new, reason):
    await registry.add_version()
    card = await registry.cards.get("seedling")
    edited = card.markdown.replace(old, new)
    assert edited != card.markdown
    with pytest.raises(InvalidArgument, match=reason):
        await registry.cards.update("seedling", edited, "ada")
    assert await registry.cards.get("seedling") == card


async def test_of_two_writers_who_saw_the_same_card_one_writes(registry):
    await registry.add_version()
    databases = [Database(registry.database.url) for _ in range(3)]

    async def edit(number):
        try:
            await Cards(databases[number]).update("seedling", f"By {number}.", str(number), if_generation=0)
        except Aborted:
            return False
        return True

    assert sum(await asyncio.gather(*map(edit, range(3)))) == 1
    assert (await registry.cards.get("seedling")).generation == 1
    for database in databases:
        await database.close()


@pytest.mark.parametrize("name", ["nobody", "seedling@2", "flower", ""])
async def test_only_a_models_or_versions_own_name_is_written_on(registry, name):
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    with pytest.raises(NotFound):
        await registry.cards.update(name, "x", "ada")
    assert (await registry.cards.get("flower")).name == "seedling@1"


async def test_what_is_deleted_has_no_card(registry):
    await registry.add_version()
    await registry.deletions.delete_version("seedling@1", "ada")
    for call in (registry.cards.get("seedling@1"), registry.cards.update("seedling@1", "x", "ada")):
        with pytest.raises(NotFound, match="was deleted"):
            await call
    assert "its weights are not in this registry" in (await registry.cards.get("seedling")).markdown
