"""What the ops on tensors share: their registration with ``torch.library``, so that
``torch.compile``, ``torch.export`` and autograd know them, and where their compiled form lies."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from detr_fast import _C

NAMESPACE = "detr_fast"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}  # as in _C


def register(
    schema: str,
    kernel: Callable,  # for CPU and CUDA tensors; allocates what it returns
    fake: Callable,  # the same shapes, without values
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> torch._ops.OpOverload:
    """Registers an op and returns it. Without a ``backward`` a gradient through it is an error."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, kernel, "CUDA")
    _LIBRARY.impl(name, through_cpu(kernel), "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def no_backward(*_: object) -> None:
        raise NotImplementedError(f"{qualified} has no derivative")

    torch.library.register_autograd(
        qualified, backward or no_backward, setup_context=setup_context, lib=_LIBRARY
    )
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def through_cpu(kernel: Callable) -> Callable:
    """The kernel for devices that have none: on copies."""

    def run(*args: object) -> object:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        copies = (arg.cpu() if isinstance(arg, Tensor) else arg for arg in args)
        return pytree.tree_map_only(Tensor, lambda out: out.to(device), kernel(*copies))

    return run


def compiled(op: str, device: torch.device) -> tuple[Callable, tuple[int, ...]]:
    """The compiled op for tensors of a device, and its last arguments: of a GPU its index and the
    current stream, of the CPU none.

    Raises:
        RuntimeError: for a CUDA device if this build has no CUDA kernels.
    """
    if device.type == "cpu":
        return getattr(_C, op), ()
    require_kernels(op)
    return getattr(_C.cuda, op), (device.index, stream_of(device))


def require_kernels(what: str) -> None:
    """Raises RuntimeError if this build has no CUDA kernels for ``what``."""
    if _C.cuda_version is None:
        raise RuntimeError(
            f"{what} of CUDA tensors, but detr_fast was built without its CUDA kernels "
            f"({_C.cuda_reason}): install it where nvcc is found, or pass CPU tensors"
        )


def stream_of(device: torch.device) -> int:
    """The address of the current stream."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def real_type(dtype: torch.dtype) -> torch.dtype:
    """What is computed with numbers of that type: float64 for float64, and else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
