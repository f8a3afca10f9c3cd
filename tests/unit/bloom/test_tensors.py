import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloom.config import PRESETS, BloomConfig
from bloom.tensors import (
    StoredTensor,
    canonical_name,
    check_tensors,
    expected_tensors,
    header,
    header_end,
    parse_header,
)

CONFIG = BloomConfig(hidden_size=48, n_layer=2, n_head=6, vocab_size=211)


def stored(names: dict[str, tuple[int, ...]], dtype: str = "F32") -> list[StoredTensor]:
    data = header({name: (dtype, shape) for name, shape in names.items()})
    size = len(data) + sum(math.prod(shape) * {"F32": 4, "BF16": 2}[dtype] for shape in names.values())
    return list(parse_header(data, file="model.safetensors", size=size).values())


def prefixed() -> dict[str, tuple[int, ...]]:
    return {f"transformer.{name}": shape for name, shape in expected_tensors(CONFIG).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_expected_tensors_hold_exactly_the_parameters(name: str):
    config = BloomConfig.preset(name)
    assert sum(math.prod(shape) for shape in expected_tensors(config).values()) == config.parameters


def test_canonical_names_have_no_prefix():
    assert canonical_name("transformer.h.0.mlp.dense_4h_to_h.bias") == "h.0.mlp.dense_4h_to_h.bias"
    assert canonical_name("ln_f.weight") == "ln_f.weight"


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "F16", "BF16"]), st.lists(st.integers(0, 50), max_size=3).map(tuple)),
        max_size=5,
    )
)
def test_a_header_that_is_written_reads_back(entries: dict[str, tuple[str, tuple[int, ...]]]):
    data = header(entries)
    num_bytes = sum(math.prod(shape) * (4 if dtype == "F32" else 2) for dtype, shape in entries.values())
    tensors = parse_header(data, file="f", size=len(data) + num_bytes)
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == entries
    assert len(data) % 8 == 0


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_error_that_names_the_file(data: bytes):
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        parse_header(data, file="weights.safetensors", size=len(data))


def test_json_nested_too_deep_is_a_damaged_header():
    data = b"[" * 200_000
    with pytest.raises(ValueError, match="f has a damaged safetensors header"):
        parse_header(len(data).to_bytes(8, "little") + data, file="f", size=len(data) + 8)


@pytest.mark.parametrize("names", [expected_tensors(CONFIG), prefixed()], ids=["bare", "transformer."])
def test_a_whole_checkpoint_is_returned_in_the_models_order(names: dict[str, tuple[int, ...]]):
    shuffled = list(reversed(stored(names)))
    assert list(check_tensors(CONFIG, shuffled)) == list(expected_tensors(CONFIG))


def test_a_saved_head_is_kept_apart():
    names = prefixed() | {"lm_head.weight": (211, 48)}
    assert list(check_tensors(CONFIG, stored(names)))[-1] == "lm_head.weight"


def test_a_missing_tensor_is_named():
    names = prefixed()
    del names["transformer.h.1.mlp.dense_4h_to_h.bias"]
    with pytest.raises(ValueError, match=r"missing tensor h\.1\.mlp\.dense_4h_to_h\.bias; .*export"):
        check_tensors(CONFIG, stored(names))


def test_an_extra_tensor_is_named():
    with pytest.raises(ValueError, match=r"unexpected tensor transformer\.h\.2\.ln\.weight"):
        check_tensors(CONFIG, stored(prefixed() | {"transformer.h.2.ln.weight": (48,)}))


def test_a_misshapen_tensor_is_named_with_both_shapes():
    with pytest.raises(ValueError, match=r"ln_f\.weight in model\.safetensors has shape \[49\].*\[48\]"):
        check_tensors(CONFIG, stored(prefixed() | {"transformer.ln_f.weight": (49,)}))


def test_a_misshapen_head_is_named():
    with pytest.raises(ValueError, match=r"lm_head\.weight .* \[210, 48\].*\[211, 48\]"):
        check_tensors(CONFIG, stored(prefixed() | {"lm_head.weight": (210, 48)}))


def test_a_tensor_saved_with_and_without_prefix_is_refused():
    with pytest.raises(ValueError, match=r"ln_f\.weight is saved twice"):
        check_tensors(CONFIG, stored(prefixed() | {"ln_f.weight": (48,)}))


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def raw(content: object) -> bytes:
    data = json.dumps(content).encode()
    return len(data).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    ("content", "num_bytes", "message"),
    [
        ({"a": entry()}, 7, "truncated"),
        ({"a": entry()}, 9, "1 bytes after its last tensor"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "tensor b is out of line"),
        ({"a": entry(offsets=(4, 12))}, 12, "tensor a is out of line"),
        ({"a": entry(offsets=(8, 0))}, 8, "tensor a is out of line"),
        ({"a": entry(shape=(-2,))}, 8, "entry for tensor a"),
        ({"a": entry(offsets=(0,))}, 8, "entry for tensor a"),
        ({"a": 3}, 8, "entry for tensor a"),
        ([1], 0, "no JSON object"),
    ],
)
def test_a_damaged_header_names_file_and_tensor(content: object, num_bytes: int, message: str):
    data = raw(content)
    with pytest.raises(ValueError, match=f"f.safetensors.*{message}"):
        parse_header(data, file="f.safetensors", size=len(data) + num_bytes)


def test_offsets_that_do_not_fit_the_shape_are_named():
    tensors = stored(prefixed() | {"transformer.ln_f.bias": (48,)})
    short = [
        t
        if t.name != "transformer.ln_f.bias"
        else StoredTensor(file=t.file, name=t.name, dtype=t.dtype, shape=t.shape, start=t.start, end=t.end - 4)
        for t in tensors
    ]
    with pytest.raises(ValueError, match=r"transformer\.ln_f\.bias .* offsets"):
        check_tensors(CONFIG, short)


def test_a_dtype_that_bloom_is_not_stored_in_is_named():
    data = raw({"ln_f.weight": entry("I32")})
    (tensor,) = parse_header(data, file="f", size=len(data) + 8).values()
    others = stored({name: shape for name, shape in expected_tensors(CONFIG).items() if name != "ln_f.weight"})
    wrong = StoredTensor(file="f", name="ln_f.weight", dtype=tensor.dtype, shape=(48,), start=0, end=192)
    with pytest.raises(ValueError, match=r"ln_f\.weight in f is I32; save the checkpoint as F32, F16, BF16"):
        check_tensors(CONFIG, [*others, wrong])


@pytest.mark.parametrize("prefix", [b"", b"\0\0\0", (10**12).to_bytes(8, "little"), (1000).to_bytes(8, "little")])
def test_a_file_shorter_than_its_header_is_truncated_or_foreign(prefix: bytes):
    with pytest.raises(ValueError, match=r"f\.safetensors is (truncated|no safetensors file)"):
        header_end(prefix, file="f.safetensors", size=len(prefix))
