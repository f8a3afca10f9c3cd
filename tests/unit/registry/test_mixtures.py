"""A mixture is checked against its datasets when it is made."""

import json

import pytest

from services.common.errors import DomainError, InvalidArgument
from tests.support.training import jsonl


async def create(registry, name: str, dataset_format: str, content: bytes):
    return await registry.datasets.create(name, dataset_format, registry.artifacts.write_bytes(content))


@pytest.fixture
async def xnli(registry):
    """A dataset of fields in two languages, and one of examples."""
    rows = [{"premise": "p", "hypothesis": "h", "label": 0, "language": code} for code in ("en", "fr")]
    await create(registry, "xnli", "FIELDS", jsonl(rows))
    await registry.add_dataset("tasks", "MULTITASK")
    await registry.add_dataset("udhr", "TEXT")


GOOD = "{{premise}}, {{hypothesis}}? ||| {{answer_choices[label]}}"


def mixture(*templates: dict, **task) -> bytes:
    return f"tasks: {json.dumps({'xnli': {'templates': templates, **task}})}".encode()


async def test_a_mixture_has_the_rows_and_languages_of_its_datasets(registry, xnli):
    template = json.dumps({"jinja": GOOD, "answer_choices": "Yes ||| No"})
    found = await create(
        registry, "mix", "MIXTURE", f"tasks:\n  xnli: {{templates: [{template}]}}\n  tasks: {{}}".encode()
    )
    tasks = await registry.datasets.get("tasks")
    assert (found.num_rows, found.languages) == (2 + tasks.num_rows, sorted({"en", "fr", *tasks.languages}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tasks: {gone: {}}", "no dataset 'gone'; upload it"),
        (b"tasks: {udhr: {}}", "task 'udhr@1' is a dataset of TEXT; a mixture takes MULTITASK and FIELDS"),
        (
            b"tasks: {tasks: {templates: [{jinja: 'a ||| b'}]}}",
            "'tasks@1' is a dataset of MULTITASK, whose rows need no",
        ),
        (b"tasks: {xnli: {}}", "task 'xnli@1' is a dataset of FIELDS, and has no template; give templates"),
        (mixture({"jinja": "a ||| b", "languages": ["fr"]}), "with rows in 'en', for which no template is; add a"),
        (mixture({"jinja": GOOD}), "template 1' reads 'answer_choices', which no row has; rows have hypothesis"),
        (mixture({"jinja": "{{premise ||| b"}), "task 'xnli', template 1 is no Jinja: line 1"),
        (mixture({"jinja": "a ||| b"}, max_examples=0), "task 'xnli': max_examples is 0; give a whole number from 1"),
        (b"mixture: {}", "the mixture has no line 'tasks:'"),
    ],
)
async def test_what_does_not_fit_its_datasets_is_refused_at_once(registry, xnli, content, message):
    with pytest.raises(DomainError, match=message):
        await create(registry, "mix", "MIXTURE", content)


async def test_the_same_mixture_again_is_no_error_and_rows_without_fields_are_none(registry, xnli):
    content = mixture({"jinja": "{{premise}} ||| {{hypothesis}}"}, max_examples=1)
    first = await create(registry, "mix", "MIXTURE", content)
    assert (await create(registry, "mix", "MIXTURE", content)).digest == first.digest
    with pytest.raises(InvalidArgument, match="row 1: no field"):
        await create(registry, "empty", "FIELDS", b"{}\n")
