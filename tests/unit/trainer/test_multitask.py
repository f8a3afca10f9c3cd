"""From rows of every form to packed examples: conversations, templates by language, at most so many of each task."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec, RunSpec
from services.trainer.dataset import IGNORE, Windows
from services.trainer.failure import JobFailure
from services.trainer.prepare import prepare
from services.trainer.windows import open_windows
from tests.support.training import BASE, job_folder, jsonl, make_run, multitask_rows, text_rows

ONE_PASS = dataclasses.replace(BASE, steps=None, epochs=1.0, sequence_length=256)


def examples(spec: RunSpec) -> list[list[tuple[str, str]]]:
    """Of each pass, (text, what of it is learnt) of each example."""
    windows = Windows(Path(prepare(spec, job_folder(spec)).windows_folder), spec.config.seed)
    store = ArtifactStore(spec.artifacts_url, Path(spec.data_dir) / "cache")
    tokenizer = Tokenizer.from_file(str(store.local_path(spec.tokenizer_digest)))

    def text(ids) -> str:
        return tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)

    passes, first = [], 0
    for size in windows.meta.variants:
        found = []
        for window in range(first, first + size):
            inputs, targets, segments = windows.inputs[window], windows.targets[window], windows.segments[window]
            for segment in sorted(set(segments)):
                own = segments == segment
                if (targets[own] != IGNORE).any():
                    found.append((text(inputs[own]), text(t for t in targets[own] if t != IGNORE)))
        passes.append(found)
        first += size
    return passes


def run_of(folder: Path, mixture: str, config=ONE_PASS, **rows: list[dict]) -> RunSpec:
    """A job on a mixture; rows of each dataset: MULTITASK where they have inputs or messages."""
    spec = make_run(folder, config)
    store = ArtifactStore(spec.artifacts_url, folder / "cache")
    datasets = [
        DatasetSpec(
            name=name,
            format="multitask" if found[0].keys() & {"inputs", "messages"} else "fields",
            digest=store.write_bytes(jsonl(found)),
        )
        for name, found in rows.items()
    ]
    mixed = DatasetSpec(name="mixed", format="mixture", digest=store.write_bytes(mixture.encode()))
    return dataclasses.replace(spec, datasets=(mixed, *datasets))


def numbered(count: int, **more: str) -> list[dict]:
    return [{"a": f"a{i}", "b": f"b{i}", **more} for i in range(count)]


def test_a_conversation_is_learnt_in_the_assistants_turns_alone(tmp_path):
    roles = ["system", "user", "assistant", "user", "assistant"]
    talk = [{"role": role, "content": f"{role}{i}."} for i, role in enumerate(roles)]
    spec = make_run(tmp_path, ONE_PASS, rows=[{"messages": talk}, {"messages": talk[1:3]}, *multitask_rows(1)])
    found = dict(examples(spec)[0])
    asked = "User: user1.\nAssistant:"
    assert found[f"{asked} assistant2."] == " assistant2.</s>"
    whole = f"system0.\n{asked} assistant2.\nUser: user3.\nAssistant: assistant4."
    assert found[whole] == " assistant2.</s> assistant4.</s>"
    assert len(found) == 3


def test_completions_as_openai_names_them_are_learnt_like_inputs_and_targets(tmp_path):
    rows = [{"prompt": "one two", "completion": " three"}, {"inputs": "four", "targets": " five"}]
    found = dict(examples(make_run(tmp_path, ONE_PASS, rows=rows))[0])
    assert found == {"one two three": " three</s>", "four five": " five</s>"}


def test_rows_of_fields_are_put_by_the_templates_for_their_language(tmp_path):
    mixture = """
tasks:
  en: {templates: [{jinja: "One: {{a}}. ||| {{b}}"}, {jinja: "Two: {{a}}. ||| {{b}}"}]}
  fr: {templates: [{jinja: "Any: {{a}}. ||| {{b}}"}, {jinja: "Un : {{a}}. ||| {{b}}", languages: [fr]}]}
"""
    spec = run_of(tmp_path, mixture, en=numbered(40), fr=numbered(20, language="fr"))
    (found,) = examples(spec)
    words = Counter(text.split()[0] for text, _ in found)
    assert words.total() == 60
    assert words["Un"] == 20
    assert min(words["One:"], words["Two:"]) > 8
    assert sorted(learnt for text, learnt in found if text.startswith("Un")) == sorted(f" b{i}</s>" for i in range(20))


def test_which_template_follows_from_the_seed_the_row_and_the_pass(tmp_path):
    mixture = "tasks: {t: {templates: [{jinja: '1 {{a}} ||| {{b}}'}, {jinja: '2 {{a}} ||| {{b}}'}]}}"
    two_passes = dataclasses.replace(ONE_PASS, epochs=2.0)
    first, second = examples(run_of(tmp_path / "a", mixture, two_passes, t=numbered(40)))
    assert len(first) == len(second) == 40
    assert sorted(first) != sorted(second)
    assert examples(run_of(tmp_path / "b", mixture, two_passes, t=numbered(40))) == [first, second]
    other_seed = dataclasses.replace(two_passes, seed=7)
    assert sorted(examples(run_of(tmp_path / "c", mixture, other_seed, t=numbered(40)))[0]) != sorted(first)


def test_each_pass_draws_anew_at_most_so_many_examples_of_each_task(tmp_path):
    mixture = "tasks: {small: {}, large: {max_examples: 10}, own: {max_examples: 4}}"
    config = dataclasses.replace(ONE_PASS, epochs=3.0, max_examples_per_dataset=30)
    rows = {
        name: [{"inputs": f"{name} {i}", "targets": f"{i}"} for i in range(size)]
        for name, size in (("small", 8), ("large", 40), ("own", 5))
    }
    passes = examples(run_of(tmp_path, mixture, config, **rows))
    assert len(passes) == 3
    for found in passes:
        assert Counter(text.split()[0] for text, _ in found) == {"small": 8, "large": 10, "own": 4}
    of_large = [{text for text, _ in found if text.startswith("large")} for found in passes]
    assert of_large[0] != of_large[1] != of_large[2]


def test_the_jobs_cap_holds_for_rows_of_every_dataset_without_a_mixture(tmp_path):
    config = dataclasses.replace(ONE_PASS, max_examples_per_dataset=7)
    assert len(examples(make_run(tmp_path / "capped", config, rows=multitask_rows(30)))[0]) == 7
    assert len(examples(make_run(tmp_path / "all", config, rows=multitask_rows(5)))[0]) == 5


def test_rows_that_a_template_renders_to_nothing_are_left_out(tmp_path):
    mixture = "tasks: {t: {templates: [{jinja: \"{% if a != 'a3' %}{{a}} ||| {{b}}{% endif %}\"}]}}"
    assert len(examples(run_of(tmp_path, mixture, t=numbered(5)))[0]) == 4


@pytest.mark.parametrize(
    ("mixture", "rows", "message"),
    [
        (
            "tasks: {t: {templates: [{jinja: '{{c}} ||| {{b}}'}]}}",
            numbered(1),
            "dataset 't', row 1 does not suit .*'c'",
        ),
        (
            "tasks: {t: {templates: [{jinja: 'a ||| b', languages: [fr]}]}}",
            [*numbered(1, language="fr"), *numbered(1, language="sw")],
            "dataset 't', row 2 has language 'sw', for which no template is; add one",
        ),
        ("tasks: {other: {}}", numbered(1), "dataset 't' has fields and no template; give some in a mixture"),
        ("tasks: {t: {cap: 1}}", numbered(1), "dataset 'mixed': task 't' has 'cap'; it takes max_examples, templates"),
        ("tasks: {t: {}}", [{"messages": []}], "dataset 't', row 1 is no conversation"),
    ],
)
def test_bad_data_fails_the_job_saying_where(tmp_path, mixture, rows, message):
    with pytest.raises(JobFailure, match=message) as failed:
        examples(run_of(tmp_path, mixture, t=rows))
    assert failed.value.code == "BAD_DATA"


def test_normalised_windows_count_examples_and_weigh_their_targets(tmp_path):
    spec = make_run(tmp_path, rows=multitask_rows(30))
    ready = prepare(spec, job_folder(spec))
    whole = open_windows(Path(ready.windows_folder), 1, normalize_targets=True)
    plain = open_windows(Path(ready.windows_folder), 1)
    size = sum(Windows(Path(ready.windows_folder), 1).meta.variants)
    assert (whole.num_targets(0, size), plain.micro_batch(0, size).target_weights) == (30, None)
    batch = whole.micro_batch(0, size)
    assert batch.target_weights.sum() == pytest.approx(30)
    assert ((batch.target_weights > 0) == (batch.targets != IGNORE)).all()
    assert plain.num_targets(0, size) > 60


def test_text_has_no_examples_to_normalise(tmp_path):
    spec = make_run(tmp_path, dataclasses.replace(BASE, normalize_targets=True), rows=text_rows(3))
    with pytest.raises(JobFailure, match="normalize_targets=true is for examples, and dataset 'rows' is text"):
        prepare(spec, job_folder(spec))
