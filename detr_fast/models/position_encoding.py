"""2D position encodings of a feature map (paper, section 3.2 and appendix A.4)."""

import math

import torch
from torch import Tensor, nn


def sine_features(position: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Interleaved sines and cosines of positions in radians, at geometrically falling frequencies.

    Args:
        position: any shape [...].
        num_features: even number of features per position.

    Returns:
        [..., num_features]: sin, cos of the first frequency, sin, cos of the second, and so on.
    """
    index = torch.arange(num_features // 2, dtype=torch.float32, device=position.device)
    angle = position[..., None].float() / temperature ** (2 * index / num_features)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


class SinePositionEncoding(nn.Module):
    """Sines of the row and the column, each normalised to (0, 2 pi] over the unpadded image.

    Half of the D features encode y, the other half x. It has no parameters and no buffers.
    """

    def __init__(self, dim: int, temperature: float = 10000.0) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"the sine encoding needs dim divisible by 4, got {dim}")
        self.features_per_axis = dim // 2
        self.temperature = temperature

    def forward(
        self,
        features: Tensor,  # [B, C, h, w]
        mask: Tensor | None,  # [B, h, w] bool, True = padding; None = no padding
    ) -> Tensor:  # [B, D, h, w]; a batch of 1 where there is no mask
        if mask is None:
            mask = torch.zeros(1, *features.shape[-2:], dtype=torch.bool, device=features.device)
        valid = (~mask).int()  # on a GPU only sums of integers are always in the same order
        y, x = valid.cumsum(1).float(), valid.cumsum(2).float()
        y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        encoded = torch.cat(
            [sine_features(axis, self.features_per_axis, self.temperature) for axis in (y, x)], -1
        )
        return encoded.permute(0, 3, 1, 2)


class NoPositionEncoding(nn.Module):
    """Zeros: the features do not say where they are. For ablations (paper, table 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(
        self,
        features: Tensor,  # [B, C, h, w]
        mask: Tensor | None,  # unused
    ) -> Tensor:  # [1, D, h, w]
        return features.new_zeros(1, self.dim, *features.shape[-2:])


class LearnedPositionEncoding(nn.Module):
    """One learned embedding per row and one per column, concatenated: D/2 features each.

    Args:
        dim: D, even.
        max_size: largest height and width of a feature map. Larger maps raise ValueError.
    """

    def __init__(self, dim: int, max_size: int = 50) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the learned encoding needs an even dim, got {dim}")
        self.row_embed = nn.Embedding(max_size, dim // 2)
        self.col_embed = nn.Embedding(max_size, dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(
        self,
        features: Tensor,  # [B, C, h, w]
        mask: Tensor | None,  # unused: padding is at the bottom right, so indices are unaffected
    ) -> Tensor:  # [1, D, h, w]
        h, w = features.shape[-2:]
        limit = self.row_embed.num_embeddings
        if max(h, w) > limit:
            raise ValueError(
                f"the feature map is {h} x {w}, but the learned position encoding has {limit} rows "
                "and columns: use smaller images, max_size, or the sine encoding"
            )
        columns = self.col_embed.weight[:w].expand(h, w, -1)
        rows = self.row_embed.weight[:h, None].expand(h, w, -1)
        return torch.cat((columns, rows), -1).permute(2, 0, 1)[None]
