import dataclasses

import pytest

from bloom.config import PRESETS, BloomConfig

COUNTS = {
    "560m": 559_214_592,
    "1b1": 1_065_314_304,
    "1b7": 1_722_408_960,
    "3b": 3_002_557_440,
    "7b1": 7_069_016_064,
    "176b": 176_247_271_424,
}
SMALL = {"hidden_size": 48, "n_layer": 2, "n_head": 6, "vocab_size": 211}


@pytest.mark.parametrize("name", COUNTS)
def test_each_preset_has_the_published_number_of_parameters(name: str):
    assert BloomConfig.preset(name).parameters == COUNTS[name]


def test_there_are_six_presets_with_the_padded_vocabulary():
    assert set(PRESETS) == set(COUNTS)
    assert {config.vocab_size for config in PRESETS.values()} == {250_880}


def test_an_unknown_preset_names_those_that_exist():
    with pytest.raises(ValueError, match=r"'13b'; choose one of 560m, 1b1"):
        BloomConfig.preset("13b")


def test_derived_sizes():
    config = BloomConfig.preset("3b")
    assert (config.head_dim, config.ffn_size) == (80, 10240)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "hidden_size=48.*multiple of n_head=5"),
        ({"n_layer": 0}, "n_layer=0"),
        ({"vocab_size": 2}, "eos_token_id=2.*0 to 1"),
        ({"hidden_size": 48.0}, "hidden_size=48.0"),
        ({"n_layer": True}, "n_layer=True"),
        ({"hidden_dropout": 1.0}, "hidden_dropout=1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0"),
        ({"seq_length": "2048"}, "seq_length='2048'"),
    ],
)
def test_a_value_that_is_no_bloom_is_named_with_its_key(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        BloomConfig(**(SMALL | change))


def test_hf_round_trip_keeps_every_field():
    config = BloomConfig(**SMALL, seq_length=128, hidden_dropout=0.1, pad_token_id=7, layer_norm_epsilon=1e-6)
    assert BloomConfig.from_hf(config.to_hf()) == config


def test_the_first_published_config_json_is_read():
    """bigscience/bloom-560m of 2022: old key names, and keys that mean nothing here."""
    config = BloomConfig.from_hf(
        {
            "apply_residual_connection_post_layernorm": False,
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "model_type": "bloom",
            "n_embed": 1024,
            "n_inner": None,
            "n_layer": 24,
            "num_attention_heads": 16,
            "offset_alibi": 100,
            "pretraining_tp": 1,
            "seq_length": 2048,
            "skip_bias_add": True,
            "unk_token_id": 0,
            "vocab_size": 250880,
        }
    )
    assert config == BloomConfig.preset("560m")


def test_null_is_read_as_absent():
    assert BloomConfig.from_hf({"model_type": "bloom", **SMALL, "pad_token_id": None}).pad_token_id == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"n_inner": 100}, "n_inner=100"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"n_embed": 96}, "hidden_size=48, n_embed=96"),
        ({"hidden_size": None}, "no hidden_size"),
    ],
)
def test_other_architectures_are_refused_by_key(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        BloomConfig.from_hf({"model_type": "bloom", **SMALL} | change)


def test_a_config_cannot_be_changed_after_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BloomConfig.preset("560m").n_head = 3
