"""Public functions on arrays and tensors: they check shapes, allocate, call the compiled code.

Those on tensors alone are registered with ``torch.library``, as ``torch.ops.detr_fast``.
"""

from detr_fast.ops.assignment import linear_sum_assignment

__all__ = ["linear_sum_assignment"]
