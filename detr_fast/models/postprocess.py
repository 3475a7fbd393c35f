"""From a model's outputs to detections in the pixels of the original images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert


class PostProcess(nn.Module):
    """Every query's best class and box; no suppression is needed (paper, section 3.1).

    Args:
        score_threshold: drop detections below this score. 0, the default, keeps all N, as
            COCO evaluation requires. A score of NaN is kept, so that a broken model does not look
            like one that finds nothing.

    Raises:
        ValueError: a threshold that is not in 0..1.
    """

    def __init__(self, score_threshold: float = 0.0) -> None:
        super().__init__()
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold is {score_threshold}, expected a score, 0..1")
        self.score_threshold = score_threshold

    def extra_repr(self) -> str:
        return f"score_threshold={self.score_threshold}"

    @torch.no_grad()
    def forward(
        self,
        outputs: Mapping[str, Any],  # pred_logits [B, N, K+1], pred_boxes [B, N, 4] cxcywh
        # [B, 2] (height, width) in pixels that the boxes are scaled to; or its B rows
        sizes: Tensor | Sequence,
    ) -> list[dict[str, Tensor]]:
        """Detections per image: ``scores`` [n], ``labels`` [n], ``boxes`` [n, 4] xyxy in pixels.

        Raises:
            ValueError: ``sizes`` is not [B, 2]; names the one that is not [2].
        """
        logits, boxes = outputs["pred_logits"].float(), outputs["pred_boxes"].float()
        if not isinstance(sizes, Tensor):
            sizes = _stacked(sizes)
        if sizes.shape != (len(logits), 2):
            raise ValueError(f"sizes has shape {list(sizes.shape)}, expected [{len(logits)}, 2]")
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        height, width = sizes.to(boxes).unbind(-1)
        scale = torch.stack((width, height, width, height), -1)[:, None]
        boxes = box_convert(boxes, "cxcywh", "xyxy") * scale
        detections = []
        for image_scores, image_labels, image_boxes in zip(scores, labels, boxes, strict=True):
            keep = ~(image_scores < self.score_threshold)  # NaN is not below it
            detections.append(
                {
                    "scores": image_scores[keep],
                    "labels": image_labels[keep],
                    "boxes": image_boxes[keep],
                }
            )
        return detections


def _stacked(sizes: Sequence) -> Tensor:
    """Return a sequence of pairs, each a tensor or not, as one tensor."""
    pairs = [torch.as_tensor(size) for size in sizes]
    for b, pair in enumerate(pairs):
        if pair.shape != (2,):
            raise ValueError(f"sizes[{b}] has shape {list(pair.shape)}, expected [2]")
    return torch.stack(pairs) if pairs else torch.empty(0, 2)
