"""The transformer: encoder, decoder and their layers (paper, section 3.2 and appendix A.3).

Everything is batch first: image features are [B, S, D] with S = h * w, queries [B, N, D].
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detr_fast.ops.dropout import dropout


class Dropout(nn.Dropout):
    """``nn.Dropout``, but faster on a CPU, and able to apply a ReLU first in the same pass."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def of_relu(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training, relu=True)


class Attention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``.

    It replaces that module, which ties query, key and value to one fast path and returns weights
    that nobody reads; this one uses ``scaled_dot_product_attention``, except with dropout on a CPU
    (see :func:`attend`).
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, D]
        key: Tensor,  # [B, S, D]
        value: Tensor,  # [B, S, D]
        key_mask: Tensor | None = None,  # [B, S] bool, True = not attended to
    ) -> Tensor:  # [B, Q, D]
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in self._project(query, key, value)
        )
        allowed = None if key_mask is None else ~key_mask[:, None, None, :]
        out = attend(q, k, v, allowed, self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = self.in_proj_weight, self.in_proj_bias
        dim = len(bias) // 3
        if query is key:  # self-attention: one larger product for both
            (w, w_value), (b, b_value) = (x.split((2 * dim, dim)) for x in (weight, bias))
            return *F.linear(query, w, b).chunk(2, -1), F.linear(value, w_value, b_value)
        parts = zip((query, key, value), weight.chunk(3), bias.chunk(3), strict=True)
        return tuple(F.linear(x, w, b) for x, w, b in parts)


def attend(
    q: Tensor,  # [B, heads, Q, D / heads]
    k: Tensor,  # [B, heads, S, D / heads]
    v: Tensor,  # [B, heads, S, D / heads]
    allowed: Tensor | None,  # [B, 1, 1, S] bool; None = every key
    p: float,  # dropout of the weights
) -> Tensor:  # [B, heads, Q, D / heads]
    """Compute ``F.scaled_dot_product_attention`` in the way that trains fastest on the device."""
    if not q.is_cpu:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=p)
    if p == 0:
        if q.dtype != torch.bfloat16:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        # On a CPU this op's backward takes five times as long in bfloat16 as in float32.
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).bfloat16()
    # For dropout on a CPU torch materialises the weights too, in more and slower passes.
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    weights = dropout(scores.softmax(-1, dtype=torch.float32), p, training=True)
    return weights.to(v.dtype) @ v


class EncoderLayer(nn.Module):
    """Self-attention over image features, then a feed-forward network; normalised after each."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        features: Tensor,  # [B, S, D]
        position: Tensor,  # [B or 1, S, D]
        mask: Tensor | None,  # [B, S] bool, True = padding
    ) -> Tensor:  # [B, S, D]
        # The position says where to look (Q and K), never what is seen (V).
        located = features + position
        attended = self.self_attn(located, located, features, mask)
        features = self.norm1(features + self.dropout(attended))
        hidden = self.dropout.of_relu(self.linear1(features))
        return self.norm2(features + self.dropout(self.linear2(hidden)))


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the image, then pass a feed-forward network.

    Without ``self_attention`` no query sees the others: for ablations.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout) if self_attention else None
        self.multihead_attn = Attention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim) if self_attention else None
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        content: Tensor,  # [B, N, D]
        query_position: Tensor,  # [B or 1, N, D]
        memory: Tensor,  # [B, S, D]
        located_memory: Tensor,  # [B, S, D]: memory + position, the keys
        mask: Tensor | None,  # [B, S] bool, True = padding
    ) -> Tensor:  # [B, N, D]
        if self.self_attn is not None:
            located = content + query_position
            attended = self.self_attn(located, located, content)
            content = self.norm1(content + self.dropout(attended))
        attended = self.multihead_attn(content + query_position, located_memory, memory, mask)
        content = self.norm2(content + self.dropout(attended))
        hidden = self.dropout.of_relu(self.linear1(content))
        return self.norm3(content + self.dropout(self.linear2(hidden)))


def _run(stack: nn.Module, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Return a layer's output; with ``stack.checkpointing`` the backward pass recomputes it."""
    if stack.checkpointing and stack.training:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


class Encoder(nn.Module):
    """A stack of encoder layers; the paper's six."""

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, dim_feedforward, dropout) for _ in range(num_layers)
        )
        self.checkpointing = False

    def forward(
        self,
        features: Tensor,  # [B, S, D]
        position: Tensor,  # [B or 1, S, D]
        mask: Tensor | None,  # [B, S] bool, True = padding
    ) -> Tensor:  # [B, S, D]
        for layer in self.layers:
            features = _run(self, layer, features, position, mask)
        return features


class Queries(Protocol):
    """What the decoder needs from its queries; see ``queries.py``."""

    def start(self, batch: int) -> tuple[Tensor, Tensor | None]: ...

    def position(self, reference: Tensor | None) -> Tensor: ...

    def boxes(self, offsets: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor | None]: ...


class Decoder(nn.Module):
    """A stack of decoder layers; one norm is applied to the output of every layer."""

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        self_attention: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, dim_feedforward, dropout, self_attention)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.checkpointing = False

    def forward(
        self,
        memory: Tensor,  # [B, S, D]
        position: Tensor,  # [B or 1, S, D]
        mask: Tensor | None,  # [B, S] bool, True = padding
        queries: Queries,
        box_head: nn.Module,  # [B, N, D] -> [B, N, 4]
    ) -> tuple[list[Tensor], list[Tensor]]:  # per layer: normed output [B, N, D], boxes [B, N, 4]
        located_memory = memory + position
        content, reference = queries.start(memory.shape[0])
        hidden_layers, box_layers = [], []
        for layer in self.layers:
            query_position = queries.position(reference)
            content = _run(self, layer, content, query_position, memory, located_memory, mask)
            # The next layer continues from the un-normed content, as the published model does.
            hidden = self.norm(content)
            boxes, reference = queries.boxes(box_head(hidden), reference)
            hidden_layers.append(hidden)
            box_layers.append(boxes)
        return hidden_layers, box_layers


class Transformer(nn.Module):
    """An encoder and a decoder, initialised as in the paper (appendix A.4): Xavier uniform."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
