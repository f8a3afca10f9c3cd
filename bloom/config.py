"""BLOOM's shape. Torch-free: the registry, the gateway and the SDK's planner read it too.

Source: Hugging Face's BloomConfig and the configurations of the six published checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

# HF's name in config.json -> other names that published checkpoints use for the same value.
_OTHER_NAMES = {
    "hidden_size": ("n_embed",),
    "n_layer": ("num_hidden_layers",),
    "n_head": ("num_attention_heads",),
}
QUANTIZATION = {"quant_method": "anthesis_int8", "version": 1}  # what docs/quantization.md describes
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class BloomConfig:
    """Raises ValueError, naming key, value and remedy, for a shape that is no BLOOM."""

    vocab_size: int = 250_880  # rows of the embedding; BLOOM's tokenizer has 250,680 ids, the rest is padding
    hidden_size: int
    n_layer: int
    n_head: int
    seq_length: int = 2048  # tokens per training sequence; ALiBi itself has no limit
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02  # standard deviation; BLOOM's own runs passed 0.0048 for all sizes
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 3
    unk_token_id: int = 0

    def __post_init__(self) -> None:
        for key in ("vocab_size", "hidden_size", "n_layer", "n_head", "seq_length"):
            _require(_is_int(getattr(self, key)) and getattr(self, key) > 0, self, key, "use a positive integer")
        _require(self.hidden_size % self.n_head == 0, self, "hidden_size", f"use a multiple of n_head={self.n_head}")
        for key in ("hidden_dropout", "attention_dropout"):
            _require(_is_number(getattr(self, key)) and 0 <= getattr(self, key) < 1, self, key, "use 0 <= p < 1")
        for key in ("layer_norm_epsilon", "initializer_range"):
            _require(_is_number(getattr(self, key)) and getattr(self, key) > 0, self, key, "use a number above 0")
        for key in _TOKENS:
            inside = _is_int(getattr(self, key)) and 0 <= getattr(self, key) < self.vocab_size
            _require(inside, self, key, f"use an id from 0 to {self.vocab_size - 1}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_head

    @property
    def ffn_size(self) -> int:
        return 4 * self.hidden_size

    @property
    def parameters(self) -> int:
        """Exact number of parameters; the tied head is counted once, ALiBi has none."""
        h = self.hidden_size
        embedding = self.vocab_size * h
        layer = 12 * h * h + 13 * h  # qkv 3h²+3h, dense h²+h, mlp 8h²+5h, two LayerNorms 4h
        return embedding + 2 * h + self.n_layer * layer + 2 * h

    @classmethod
    def preset(cls, name: str) -> "BloomConfig":
        """One of the six published sizes: 560m, 1b1, 1b7, 3b, 7b1, 176b."""
        if name not in PRESETS:
            raise ValueError(f"no BLOOM preset {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BloomConfig":
        """Read a checkpoint's config.json; keys that change no shape are ignored (is_quantized reads one of them).

        Raises ValueError for another architecture and for variants that no published BLOOM uses.
        """
        _refuse_variants(config)
        values = {field.name: _lookup(config, field.name) for field in fields(cls)}
        values = {key: value for key, value in values.items() if value is not None}
        for key in ("hidden_size", "n_layer", "n_head"):
            if key not in values:
                raise ValueError(f"config.json has no {key}; add it: the checkpoint's shape is not known without it")
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The config.json that transformers reads as BloomForCausalLM."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        fixed = {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "apply_residual_connection_post_layernorm": False,
            "tie_word_embeddings": True,
            "use_cache": True,
        }
        return fixed | values


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a config.json announces int8 weights. Raises ValueError for another method or version of quantization."""
    said = config.get("quantization_config")
    if not said:
        return False
    method = said.get("quant_method") if isinstance(said, Mapping) else said
    if method != QUANTIZATION["quant_method"]:
        raise ValueError(
            f"quantization_config has quant_method={method!r}, only {QUANTIZATION['quant_method']!r} is supported;"
            " use the unquantized checkpoint, or quantize it: python -m bloom.quantize"
        )
    if said.get("version") != QUANTIZATION["version"]:
        raise ValueError(
            f"quantization_config has version={said.get('version')!r}, this release reads {QUANTIZATION['version']};"
            " update it, or quantize the original checkpoint anew: python -m bloom.quantize"
        )
    return True


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _require(condition: bool, config: BloomConfig, key: str, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{key}={getattr(config, key)!r} is no BLOOM configuration; {remedy}")


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of key under any of its names; None where it is absent or null."""
    found = {name: config[name] for name in (key, *_OTHER_NAMES.get(key, ())) if config.get(name) is not None}
    if len(set(map(repr, found.values()))) > 1:
        names = ", ".join(f"{name}={value!r}" for name, value in found.items())
        raise ValueError(f"config.json contradicts itself: {names} name the same value; keep one of them")
    return next(iter(found.values()), None)


def _refuse_variants(config: Mapping[str, Any]) -> None:
    is_quantized(config)
    refused = {
        "model_type": config.get("model_type") == "bloom",
        "apply_residual_connection_post_layernorm": not config.get("apply_residual_connection_post_layernorm"),
        "tie_word_embeddings": config.get("tie_word_embeddings", True) is not False,
        "n_inner": config.get("n_inner") in (None, 4 * (_lookup(config, "hidden_size") or 0)),
    }
    for key, served in refused.items():
        if not served:
            raise ValueError(f"{key}={config.get(key)!r} in config.json is not supported; use a plain BLOOM checkpoint")


PRESETS: dict[str, BloomConfig] = {
    "560m": BloomConfig(hidden_size=1024, n_layer=24, n_head=16),
    "1b1": BloomConfig(hidden_size=1536, n_layer=24, n_head=16),
    "1b7": BloomConfig(hidden_size=2048, n_layer=24, n_head=16),
    "3b": BloomConfig(hidden_size=2560, n_layer=30, n_head=32),
    "7b1": BloomConfig(hidden_size=4096, n_layer=30, n_head=32),
    "176b": BloomConfig(hidden_size=14336, n_layer=70, n_head=112),
}
