import pytest

from services.common.errors import InvalidArgument
from services.inference.sampling import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("logprobs", 21),
    ],
)
def test_a_value_out_of_range_is_refused_with_name_value_and_range(name: str, value: float):
    with pytest.raises(InvalidArgument) as error:
        SamplingParams(**{"seed": 0, name: value})
    assert f"{name}={value}" in str(error.value)
    assert "use" in str(error.value)
