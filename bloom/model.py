"""BLOOM: embedding, its LayerNorm, pre-LN blocks, final LayerNorm, tied head. Parameter names are Hugging Face's.

T = packed tokens, H = hidden size, N = heads (of this rank), D = head dim, V = rows of the embedding.
Source: Workshop et al. 2022, BLOOM; transformers' modeling_bloom.py; Megatron-DeepSpeed's transformer.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BloomConfig
from .initial import initial_tensor
from .tied_gradient import TiedGradient

# attend(layer, q, k, v) -> (T, N, D), from q, k, v each (T, N, D); q is not scaled yet. Training passes dense causal
# attention over whole sequences, the engine attention over its paged cache: the model knows neither.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class SelfAttention(nn.Module):
    def __init__(self, config: BloomConfig, layer: int, *, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__()
        h = config.hidden_size
        self.layer = layer
        self.head_dim = config.head_dim
        self.query_key_value = nn.Linear(h, 3 * h, device=device, dtype=dtype)
        self.dense = nn.Linear(h, h, device=device, dtype=dtype)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        qkv = self.query_key_value(x)
        # Rows are [N, 3, D]: the heads of a tensor-parallel share lie together, so N is whatever rows there are. T is
        # what comes out: with sequence parallelism a rank passes its own tokens and gets all.
        q, k, v = qkv.view(qkv.shape[0], -1, 3, self.head_dim).unbind(dim=2)  # each (T, N, D)
        out: Tensor = self.dense(attend(self.layer, q, k, v).flatten(1))
        return out


class MLP(nn.Module):
    def __init__(self, config: BloomConfig, *, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.ffn_size, device=device, dtype=dtype)
        self.dense_4h_to_h = nn.Linear(config.ffn_size, config.hidden_size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One layer. Both residuals start before their LayerNorm."""

    def __init__(self, config: BloomConfig, layer: int, *, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__()
        h, eps = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = nn.LayerNorm(h, eps=eps, device=device, dtype=dtype)
        self.self_attention = SelfAttention(config, layer, device=device, dtype=dtype)
        self.post_attention_layernorm = nn.LayerNorm(h, eps=eps, device=device, dtype=dtype)
        self.mlp = MLP(config, device=device, dtype=dtype)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.dropout(self.self_attention(self.input_layernorm(x), attend))
        x = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return x


class TiedEmbedding(nn.Embedding):
    tied: TiedGradient | None = None  # in training, where one rank has both ends

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # else torch imports sympy and more to draw nothing: 150 MB and seconds
            super().reset_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows(ids)

    def rows(self, ids: Tensor) -> Tensor:
        """(T, H) of ids (T,)."""
        return self.tied.rows(ids, self.weight) if self.tied else F.embedding(ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) from hidden (M, H)."""
        return F.linear(hidden, self.weight)


class BloomModel(nn.Module):
    """Computes on packed tokens; whose sequences they are only `attend` knows. Dropout acts in training mode alone."""

    def __init__(
        self,
        config: BloomConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        device = None if device is None else torch.device(device)
        h, eps = config.hidden_size, config.layer_norm_epsilon
        self.config = config
        self.word_embeddings = TiedEmbedding(config.vocab_size, h, device=device, dtype=dtype)
        self.word_embeddings_layernorm = nn.LayerNorm(h, eps=eps, device=device, dtype=dtype)
        self.h = nn.ModuleList(Block(config, i, device=device, dtype=dtype) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(h, eps=eps, device=device, dtype=dtype)

    def forward(self, input_ids: Tensor, attend: Attend) -> Tensor:
        """Final hidden states (T, H), after ln_f, of input_ids (T,)."""
        x: Tensor = self.word_embeddings_layernorm(self.word_embeddings(input_ids))  # (T, H)
        for block in self.h.children():  # a list, or of a cut model a dict
            x = block(x, attend)
        x = self.ln_f(x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) from hidden (M, H); the head is the embedding, without a bias."""
        return self.word_embeddings.logits(hidden)

    @torch.no_grad()
    def initialize(self, seed: int, *, std: float | None = None) -> None:
        """Draw all weights: see initial_tensor."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_tensor(self.config, name, seed, std=std))
