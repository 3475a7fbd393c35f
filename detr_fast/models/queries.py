"""Where the decoder's queries come from: learned embeddings (the paper) or anchor boxes.

A query source answers three questions of the decoder: what the queries are before the first
layer (``start``), where each one looks (``position``), and what the box head's output means
(``boxes``), together with the reference that the next layer starts from.
"""

import math

import torch
from torch import Tensor, nn

from detr_fast.models.mlp import MLP
from detr_fast.models.position_encoding import sine_features
from detr_fast.models.transformer import Decoder

QUERY_MODES = ("learned", "anchor")


class LearnedQueries(nn.Embedding):
    """The paper's queries: zero content plus one learned position embedding per query.

    The weight is [N, D], under the name it has in published checkpoints (``query_embed.weight``).
    """

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__(num_queries, dim)

    def start(self, batch: int) -> tuple[Tensor, None]:
        """Zero content [B, N, D]; learned queries have no reference."""
        return self.weight.new_zeros(batch, *self.weight.shape), None

    def position(self, reference: None) -> Tensor:
        """The embedding itself: [1, N, D]."""
        return self.weight[None]

    def boxes(self, offsets: Tensor, reference: None) -> tuple[Tensor, None]:
        """Boxes [B, N, 4] cxcywh in 0..1 straight from the head's output [B, N, 4]."""
        return _at_least_float32(offsets).sigmoid(), None


class AnchorQueries(nn.Module):
    """Queries with a learned anchor box each, which every decoder layer refines.

    The position of a query comes from its box: the sine features of the centre, as the image
    features have them, plus an MLP of the sine features of the whole box. So the decoder knows
    where and how large each query is. The content starts from a learned, zero-initialised
    embedding. The box head predicts an offset to the box in logit space, and the refined box,
    detached, is the next layer's anchor. After DAB-DETR (Liu et al. 2022, section 4).
    """

    def __init__(self, num_queries: int, dim: int, temperature: float) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"anchor queries need dim divisible by 4, got {dim}")
        self.features_per_coordinate = dim // 2
        self.temperature = temperature
        self.content = nn.Parameter(torch.zeros(num_queries, dim))
        self.anchors = nn.Parameter(_spread_anchors(num_queries))
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        nn.init.zeros_(self.position_head.layers[-1].weight)
        nn.init.zeros_(self.position_head.layers[-1].bias)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """The learned content [B, N, D] and the learned anchors [B, N, 4], in logit space."""
        return self.content.expand(batch, -1, -1), self.anchors.expand(batch, -1, -1)

    def position(self, reference: Tensor) -> Tensor:
        """An embedding [B, N, D] of the reference boxes [B, N, 4], in logit space."""
        radians = reference.sigmoid() * (2 * math.pi)
        features = sine_features(radians, self.features_per_coordinate, self.temperature)
        features = features.to(self.content.dtype)
        x, y, _, _ = features.unbind(-2)  # [B, N, D/2] each
        return torch.cat((y, x), -1) + self.position_head(features.flatten(-2))

    def boxes(self, offsets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4] cxcywh in 0..1, and the next reference [B, N, 4] in logit space."""
        refined = _at_least_float32(offsets) + reference
        return refined.sigmoid(), refined.detach()


def _at_least_float32(x: Tensor) -> Tensor:
    """Return x in at least float32: half precision has three digits, about a pixel of an image."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _spread_anchors(num_queries: int) -> Tensor:
    """Return anchors [N, 4] in logit space: spread evenly, with sides a fifth of the image's.

    The centres are the first points of the R2 sequence, which covers the square evenly for any N.
    """
    plastic = 1.32471795724474602596  # the plastic number: x^3 = x + 1
    index = torch.arange(1, num_queries + 1, dtype=torch.float64)
    centres = torch.stack((index / plastic, index / plastic**2), -1) % 1.0
    sizes = torch.full_like(centres, 0.2)
    return torch.cat((centres.clamp(0.02, 0.98), sizes), -1).logit().float()


def attend_nearby(decoder: Decoder, gain: float = 2.0) -> None:
    """Start cross-attention with equal query and key projections, ``gain`` times their usual size.

    The product of a query's position with a feature's is then largest where the anchor is. With
    independent projections attention starts uniform, and a model that is trained from scratch on
    few images may stay on that plateau.
    """
    with torch.no_grad():
        for layer in decoder.layers:
            query, key, _ = layer.multihead_attn.in_proj_weight.chunk(3)
            key.copy_(query.mul_(gain))
