"""Public functions on arrays and tensors: they check shapes, allocate and call compiled code.

Those that take only tensors are registered with ``torch.library``, as ``torch.ops.detr_fast``.
"""

from detr_fast.ops.assignment import linear_sum_assignment
from detr_fast.ops.matched import box_losses, target_classes
from detr_fast.ops.pairwise import box_iou, generalized_box_iou

__all__ = [
    "box_iou",
    "box_losses",
    "generalized_box_iou",
    "linear_sum_assignment",
    "target_classes",
]
