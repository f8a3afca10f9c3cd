"""In what the makings of two versions differ, as far as that may change numbers."""

import copy
import json

from anthesis.provenance import Difference, differences

RECORD = {
    "job": "job-1",
    "tokens": "a",
    "recipe": {"seed": 42, "bpe_dropout": 0.0},
    "datasets": [{"name": "texts", "format": "text", "digest": "sha256:1"}],
    "lora": None,
    "attempts": [{"first_step": 0, "layout": "1x1x2", "machine": {"threads": 2}}],
}


def changed(change) -> list[Difference]:
    other = copy.deepcopy(RECORD)
    change(other)
    return differences(json.dumps(RECORD), json.dumps(other))


def test_what_changes_no_number_is_no_difference():
    assert changed(lambda record: record.update(job="job-2", tokens="b")) == []
    assert changed(lambda record: record["attempts"].insert(0, record["attempts"][0] | {"first_step": 5})) == []


def test_a_difference_has_its_path_and_both_values():
    assert changed(lambda record: record["recipe"].update(seed=43)) == [Difference("recipe.seed", "42", "43")]
    assert changed(lambda record: record.update(lora={"rank": 8})) == [Difference("lora.rank", "-", "8")]


def test_attempts_that_differ_show_all_their_values_in_order():
    fewer = {"first_step": 5, "layout": "1x1x1", "machine": {"threads": 2}}
    assert changed(lambda record: record["attempts"].append(fewer)) == [
        Difference("attempts.layout", "1x1x2", "1x1x2, then 1x1x1")
    ]


def test_tokens_are_compared_where_they_do_not_follow_from_the_rest():
    mine = copy.deepcopy(RECORD) | {"recipe": {"seed": 42, "bpe_dropout": 0.1}}
    other = mine | {"tokens": "b"}
    assert differences(json.dumps(mine), json.dumps(other)) == [Difference("tokens", "a", "b")]
