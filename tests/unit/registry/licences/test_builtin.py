"""The texts are the exact ones, and nothing starts without them."""

import asyncio

import pytest
from alembic import command

from services.registry.database import Database, alembic_config
from services.registry.licences.builtin import BUILTIN, check_seeded, read_text, seed_licences
from services.registry.licences.terms import in_short, use_restrictions
from tests.support.registry_data import empty_database

RAIL = next(licence for licence in BUILTIN if licence.id == "bigscience-rail-1.0")


def test_every_text_is_there_and_is_the_exact_one():
    texts = {licence.id: read_text(licence) for licence in BUILTIN}
    assert texts["bigscience-rail-1.0"].startswith("BigScience RAIL License v1.0\ndated May 19, 2022")
    assert "Apache License" in texts["apache-2.0"]
    assert "Permission is hereby granted, free of charge" in texts["mit"]
    assert [licence.id for licence in BUILTIN if licence.must_accept] == ["bigscience-rail-1.0"]


def test_a_missing_or_changed_text_names_the_command_that_fetches_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text of licence bigscience-rail-1\.0 .*`python -m infra\.licences`"):
        read_text(RAIL, tmp_path)
    (tmp_path / "bigscience-rail-1.0.txt").write_text(read_text(RAIL) + ".")
    with pytest.raises(ValueError, match=r"has sha256:[0-9a-f]{64}, licence bigscience-rail-1\.0 sha256:bd59d4ca"):
        read_text(RAIL, tmp_path)


async def test_a_database_without_the_texts_is_refused_with_the_commands(tmp_path):
    url = empty_database("sqlite", tmp_path)
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    database = Database(url)
    with pytest.raises(RuntimeError, match=r"`python -m infra\.licences` and `python -m services\.registry\.boot"):
        await check_seeded(database)
    with pytest.raises(FileNotFoundError):
        await seed_licences(database, folder=tmp_path)
    await seed_licences(database)
    await seed_licences(database)
    await check_seeded(database)
    await database.close()


def test_the_restrictions_are_paragraph_5_and_attachment_a_word_for_word():
    text = read_text(RAIL)
    restrictions = use_restrictions(text)
    paragraph, _, attachment = restrictions.partition("\n\nAttachment A\n")
    assert paragraph.startswith("5. Use-based restrictions. The restrictions set forth in Attachment A")
    assert paragraph.endswith("comply with the terms of this paragraph (paragraph 5).")
    assert "The Output You Generate" not in restrictions
    assert attachment.startswith("Use Restrictions\nYou agree not to use the Model or Derivatives of the Model:\n1. In")
    assert "13. To generate or disseminate information for the purpose to be used for administration" in attachment
    assert all(line.strip() in text for line in restrictions.splitlines())


def test_the_restrictions_in_short_have_all_thirteen():
    short = in_short(read_text(RAIL))
    assert [part.partition(".")[0] for part in short.split("; ")] == [str(number) for number in range(1, 14)]
    assert "12. To provide medical advice" in short
    assert len(short) < 1200


@pytest.mark.parametrize("licence", [licence for licence in BUILTIN if licence != RAIL])
def test_permissive_licences_restrict_no_use(licence):
    assert use_restrictions(read_text(licence)) == in_short(read_text(licence)) == ""
