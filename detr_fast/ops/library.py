"""Code that the ops on tensors share: registration with ``torch.library``, so that
``torch.compile``, ``torch.export`` and autograd support them, and lookup of their compiled form."""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from detr_fast import _C

NAMESPACE = "detr_fast"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}  # as in _C


def register(
    schema: str,
    kernel: Callable,  # for CPU and CUDA tensors; allocates what it returns
    fake: Callable,  # returns the same shapes, without values
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> torch._ops.OpOverload:
    """Register an op and return it. Without a ``backward`` a gradient through it is an error."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CPU")
    if _C.cuda_version is not None:
        _LIBRARY.impl(name, kernel, "CUDA")
    _LIBRARY.impl(name, cpu_fallback(kernel), "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    def no_backward(*_: object) -> None:
        raise NotImplementedError(f"{qualified} has no derivative")

    torch.library.register_autograd(
        qualified, backward or no_backward, setup_context=setup_context, lib=_LIBRARY
    )
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def refuse_forward_mode(op: str, *tensors: Tensor) -> None:
    """Raise for a tensor that carries a tangent: torch would lose it without a word.

    In code that torch.compile has traced it does so all the same.

    Raises:
        NotImplementedError: names the op.
    """
    if not torch.compiler.is_compiling() and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise NotImplementedError(f"{op} has no derivative in forward mode, only in reverse mode")


def cpu_fallback(kernel: Callable) -> Callable:
    """Return the kernel for devices that have none: it runs on CPU copies."""

    def run(*args: object) -> object:
        first = next(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
        if first.is_cuda:
            warn_cpu_fallback()
        copies = pytree.tree_map_only(Tensor, Tensor.cpu, args)
        return pytree.tree_map_only(Tensor, lambda out: out.to(first.device), kernel(*copies))

    return run


def kernel_for(op: str, device: torch.device) -> tuple[Callable, tuple[int, ...]]:
    """Return the compiled op for tensors on a device, and its last arguments: for a GPU its index
    and the current stream, for the CPU none."""
    if device.type == "cpu":
        return getattr(_C, op), ()
    return getattr(_C.cuda, op), (device.index, current_stream(device))


def has_kernels(tensor: Tensor) -> bool:
    """Return whether CUDA kernels can process the tensor. Warns if only the kernels are missing."""
    if not tensor.is_cuda:
        return False
    if _C.cuda_version is None:
        warn_cpu_fallback()
    return _C.cuda_version is not None


@lru_cache(maxsize=1)  # once
def warn_cpu_fallback() -> None:
    warnings.warn(
        "detr_fast was built without its CUDA kernels: CUDA tensors are copied to the CPU and "
        f"processed there, and the host waits for them ({_C.cuda_reason}). With nvcc on PATH, "
        "`pip install .` builds the kernels",
        stacklevel=2,
    )


def current_stream(device: torch.device) -> int:
    """Return the address of a GPU's current stream; 0 for other devices."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in for inputs of a dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
