import json

import pytest

from services.inference.loaded_version import count_token_ids


def test_token_ids_are_counted_with_the_added_ones():
    tokenizer = {"model": {"vocab": {"a": 4, "b": 9}}, "added_tokens": [{"id": 0}, {"id": 12}]}
    assert count_token_ids(json.dumps(tokenizer).encode()) == 13


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"model": {"vocab": {}}}', b'{"model": {"vocab": []}}'])
def test_what_is_no_tokenizer_is_refused(content: bytes):
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        count_token_ids(content)
