import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.registry.licences.expression import join, normal, parse

IDS = st.text("az09", min_size=1, max_size=8).map(lambda letters: letters + ".0-x")


@given(st.lists(IDS, min_size=1, max_size=8))
def test_what_is_joined_is_parsed_back(ids):
    assert set(parse(join(ids))) == set(ids)


@given(st.lists(IDS, min_size=1, max_size=8), st.randoms())
def test_there_is_one_way_to_write_the_same_licences(ids, random):
    shuffled = random.sample(ids, len(ids)) + ids[:1]
    assert normal(" AND ".join(part.upper() for part in shuffled)) == join(ids)
    assert normal(join(ids)) == join(ids)


@given(st.text(max_size=60))
def test_any_text_is_refused_or_read_as_plain_ids(text):
    try:
        ids = parse(text)
    except InvalidArgument:
        return
    assert ids
    assert all(licence.isascii() and licence == licence.lower() and " " not in licence for licence in ids)


@pytest.mark.parametrize("text", ["", "mit OR apache-2.0", "mit AND", "a/b", "../mit", "mit\n", "é", "x" * 65, "(mit)"])
def test_what_is_no_list_of_ids_is_refused(text):
    with pytest.raises(InvalidArgument, match="is not allowed; give an SPDX identifier"):
        parse(text)


def test_more_licences_than_anybody_reads_are_refused():
    with pytest.raises(InvalidArgument, match="at most 20 joined by ' AND '"):
        parse(" AND ".join(f"l{number}" for number in range(21)))
