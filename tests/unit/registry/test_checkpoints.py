import json
import math
import os
import re
import struct
import tracemalloc
from pathlib import Path

import pytest

from bloom import tensors
from bloom.config import PRESETS, QUANTIZATION
from bloom.tensors import expected_tensors, header
from services.common.errors import InvalidArgument, NotFound
from services.registry.checkpoints import INDEX, File, inspect_checkpoint
from tests.support.registry_data import TINY, safetensors_bytes, store_checkpoint, tokenizer_bytes

SHAPES = expected_tensors(TINY)
CONFIG = json.dumps(TINY.to_hf()).encode()
TOKENIZER = tokenizer_bytes()


def inspect(artifacts, files, tokenizer=TOKENIZER):
    """Store `files` (path -> bytes) and inspect them."""
    stored = [File(path=path, digest=artifacts.write_bytes(data)) for path, data in files.items()]
    return inspect_checkpoint(artifacts, stored, artifacts.write_bytes(tokenizer))


def test_a_whole_checkpoint_is_taken_with_its_sizes(artifacts):
    stored = store_checkpoint(artifacts)
    checkpoint = inspect_checkpoint(artifacts, stored.files, stored.tokenizer_digest)
    assert checkpoint.config == TINY
    assert checkpoint.size_bytes == sum(artifacts.size(file.digest) for file in stored.files)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_shards_with_an_index_are_taken_in_every_precision_with_and_without_the_prefix(artifacts, prefix, dtype):
    names = list(SHAPES)
    shards = {"model-1-of-2.safetensors": names[:10], "model-2-of-2.safetensors": names[10:]}
    weight_map = {prefix + name: shard for shard, inside in shards.items() for name in inside}
    files = {
        shard: safetensors_bytes({prefix + name: SHAPES[name] for name in inside}, dtype)
        for shard, inside in shards.items()
    }
    index = json.dumps({"weight_map": weight_map}).encode()
    assert inspect(artifacts, {"config.json": CONFIG, INDEX: index, **files}).config == TINY


def test_a_saved_tied_head_and_other_small_files_are_taken(artifacts):
    weights = safetensors_bytes({**SHAPES, "lm_head.weight": SHAPES["word_embeddings.weight"]})
    inspect(artifacts, {"config.json": CONFIG, "model.safetensors": weights, "README.md": b"# Sprout"})


def test_the_adapter_that_weights_were_merged_with_goes_along_but_is_no_weights(artifacts):
    adapter = {"adapter/adapter_model.safetensors": safetensors_bytes({"x": (3, 4)})}
    inspect(artifacts, {"config.json": CONFIG, "model.safetensors": safetensors_bytes(SHAPES), **adapter})
    with pytest.raises(InvalidArgument, match=r"no \.safetensors file among"):
        inspect(artifacts, {"config.json": CONFIG, **adapter})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({name: shape for name, shape in SHAPES.items() if name != "ln_f.bias"}, r"missing tensor ln_f\.bias"),
        ({**SHAPES, "h.2.mlp.extra": (1,)}, r"unexpected tensor h\.2\.mlp\.extra"),
        ({**SHAPES, "ln_f.weight": (13,)}, r"tensor ln_f\.weight in model\.safetensors has shape \[13\]"),
        ({**SHAPES, "lm_head.weight": (1, 12)}, r"tensor lm_head\.weight"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(artifacts, shapes, message):
    with pytest.raises(InvalidArgument, match=message):
        inspect(artifacts, {"config.json": CONFIG, "model.safetensors": safetensors_bytes(shapes)})


QUANTIZED = json.dumps(TINY.to_hf() | {"quantization_config": QUANTIZATION}).encode()
INT8 = {
    name: ("I8" if len(shape) == 2 else "F32", shape) for name, shape in expected_tensors(TINY, quantized=True).items()
}
SCALE = "h.1.mlp.dense_h_to_4h.weight_scale"


def int8_bytes(entries=INT8, *, scale: float = 0.0) -> bytes:
    """A safetensors file of zeros, but for the third number of SCALE."""
    head = tensors.header(entries)
    data = bytearray(sum(math.prod(shape) * tensors.DTYPE_BYTES[dtype] for dtype, shape in entries.values()))
    if scale:
        start = json.loads(head[8:])[SCALE]["data_offsets"][0]
        data[start + 8 : start + 12] = struct.pack("<f", scale)
    return head + data


def test_int8_weights_are_taken_when_the_configuration_says_so(artifacts):
    files = {"config.json": QUANTIZED, "model.safetensors": int8_bytes(scale=0.5)}
    checkpoint = inspect(artifacts, files)
    assert checkpoint.config == TINY
    assert json.loads(checkpoint.config_json)["quantization_config"] == QUANTIZATION


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        (
            CONFIG,
            int8_bytes(),
            r"word_embeddings\.weight in .* is I8, but config\.json has no quant",
        ),
        (QUANTIZED, safetensors_bytes(SHAPES), r"missing tensors word_embeddings\.weight_scale"),
        (QUANTIZED, int8_bytes({**INT8, SCALE: ("F32", (47,))}), r"dense_h_to_4h\.weight_scale in .* has shape \[47\]"),
        (QUANTIZED, int8_bytes({**INT8, SCALE: ("F16", (48,))}), r"dense_h_to_4h\.weight_scale in .* is F16"),
        (
            QUANTIZED,
            int8_bytes(scale=math.inf),
            r"has scale inf in row 2, .* python -m bloom\.quantize",
        ),
        (QUANTIZED, int8_bytes(scale=-1.0), r"has scale -1\.0 in row 2"),
        (QUANTIZED.replace(b'"version": 1', b'"version": 9'), int8_bytes(), r"version=9, this release reads 1"),
        (QUANTIZED.replace(b"anthesis_int8", b"awq"), int8_bytes(), r"quant_method='awq', only 'anthesis_int8'"),
    ],
)
def test_damaged_or_foreign_int8_weights_are_refused(artifacts, config, weights, message):
    with pytest.raises(InvalidArgument, match=message):
        inspect(artifacts, {"config.json": config, "model.safetensors": weights})


@pytest.mark.parametrize("size", [0, 5, 100, 20_000])
def test_a_truncated_file_is_named(artifacts, size):
    weights = safetensors_bytes(SHAPES)[:size]
    with pytest.raises(InvalidArgument, match=r"model\.safetensors is truncated"):
        inspect(artifacts, {"config.json": CONFIG, "model.safetensors": weights})


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"ln_f.bias": "other.safetensors"}, r"says tensor ln_f\.bias is in other\.safetensors, it is in model"),
        ({"h.9.x": "model.safetensors"}, r"says tensor h\.9\.x is in model\.safetensors, it is in no file given"),
        (None, "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_the_shards_is_refused(artifacts, weight_map, message):
    said = None if weight_map is None else dict.fromkeys(SHAPES, "model.safetensors") | weight_map
    index = json.dumps({"weight_map": said}).encode()
    files = {"config.json": CONFIG, INDEX: index, "model.safetensors": safetensors_bytes(SHAPES)}
    with pytest.raises(InvalidArgument, match=message):
        inspect(artifacts, files)


@pytest.mark.parametrize("path", ["pytorch_model.bin", "weights.pt", "model.pth"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(artifacts, path):
    files = {"config.json": CONFIG, "model.safetensors": safetensors_bytes(SHAPES), path: b"\x80"}
    with pytest.raises(InvalidArgument, match=rf"'{path}' is a pickle.*save_pretrained"):
        inspect(artifacts, files)


@pytest.mark.parametrize("path", ["../model.safetensors", "/model.safetensors", "a//b", "a\\b", "", "a/../b", "a\nb"])
def test_a_path_that_could_leave_the_folder_is_refused(artifacts, path):
    files = {"config.json": CONFIG, "model.safetensors": safetensors_bytes(SHAPES), path: b"x"}
    with pytest.raises(InvalidArgument, match="file path"):
        inspect(artifacts, files)


def test_a_file_listed_twice_is_refused(artifacts):
    file = store_checkpoint(artifacts).files[0]
    with pytest.raises(InvalidArgument, match=r"'config\.json' is listed twice"):
        inspect_checkpoint(artifacts, [file, file], "")


def test_a_file_that_was_not_uploaded_is_not_found(artifacts):
    stored = store_checkpoint(artifacts)
    missing = File(path="model.safetensors", digest="sha256:" + "0" * 64)
    with pytest.raises(NotFound, match="upload it first"):
        inspect_checkpoint(artifacts, [stored.files[0], missing], stored.tokenizer_digest)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": b""}, r"no config\.json among"),
        ({"config.json": CONFIG}, r"no \.safetensors file among config\.json"),
        ({"config.json": b"{", "model.safetensors": b""}, r"config\.json is not JSON"),
        ({"config.json": b"[]", "model.safetensors": b""}, r"config\.json holds no JSON object"),
        ({"config.json": b"\xff", "model.safetensors": b""}, r"config\.json is not UTF-8"),
        ({"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b""}, "model_type='gpt2'"),
        ({"config.json": b" " * 2_000_000, "model.safetensors": b""}, "2000000 bytes"),
    ],
)
def test_files_that_are_no_bloom_checkpoint_are_refused(artifacts, files, message):
    with pytest.raises(InvalidArgument, match=message):
        inspect(artifacts, files)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (b"not json", r"is no Hugging Face tokenizer\.json"),
        (b"{}", r"is no Hugging Face tokenizer\.json"),
        (b'{"model": {"vocab": {"a": "b"}}}', r"is no Hugging Face tokenizer\.json"),
        (b'{"model": {"vocab": {}}}', "has no tokens"),
        (tokenizer_bytes(301), "has 301 ids, the model's embedding 300 rows"),
    ],
)
def test_a_tokenizer_that_is_none_or_too_large_is_refused(artifacts, tokenizer, message):
    files = {"config.json": CONFIG, "model.safetensors": safetensors_bytes(SHAPES)}
    with pytest.raises(InvalidArgument, match=message):
        inspect(artifacts, files, tokenizer)


def test_ids_of_a_unigram_vocabulary_are_its_positions(artifacts):
    tokenizer = json.dumps({"model": {"vocab": [["a", -1.0]] * 301}}).encode()
    files = {"config.json": CONFIG, "model.safetensors": safetensors_bytes(SHAPES)}
    with pytest.raises(InvalidArgument, match="has 301 ids"):
        inspect(artifacts, files, tokenizer)


def test_a_checkpoint_of_176b_is_inspected_by_its_headers_in_little_memory(artifacts):
    """352 GB of holes: the embedding, each layer and the last norm in a shard of its own, with the index."""
    config = PRESETS["176b"]
    shards: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, shape in expected_tensors(config).items():
        layer = re.match(r"h\.(\d+)\.", name)
        number = int(layer[1]) + 2 if layer else 1 if name.startswith("word") else config.n_layer + 2
        shards.setdefault(f"model_{number:05}-of-{config.n_layer + 2:05}.safetensors", {})[name] = ("BF16", shape)
    files = []
    for number, (path, held) in enumerate(shards.items()):
        data = header(held)
        digest = f"sha256:{number:064x}"
        place = Path(artifacts._path(digest))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.truncate(place, len(data) + 2 * sum(math.prod(shape) for _, shape in held.values()))
        files.append(File(path=path, digest=digest))
    index = {"weight_map": {name: path for path, held in shards.items() for name in held}}
    for path, content in ((INDEX, index), ("config.json", config.to_hf())):
        files.append(File(path=path, digest=artifacts.write_bytes(json.dumps(content).encode())))
    tokenizer = artifacts.write_bytes(tokenizer_bytes())

    tracemalloc.start()
    found = inspect_checkpoint(artifacts, files, tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(shards) == 72
    assert found.config.parameters == 176_247_271_424
    assert found.size_bytes > 2 * 176_247_271_424
    assert peak < 16 << 20
