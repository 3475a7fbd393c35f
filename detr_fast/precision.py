"""Mixed precision: bfloat16 where it pays."""

from contextlib import AbstractContextManager

import torch

AMP = ("auto", "none", "bf16")


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype, or None for float32.

    Args:
        amp: ``"none"``, ``"bf16"``, or ``"auto"``: bfloat16 where the hardware multiplies matrices
            in it, on GPUs from Ampere on and CPUs with AMX.

    Raises:
        ValueError: any other value.
    """
    if amp not in AMP:
        raise ValueError(f"amp is {amp!r}, expected one of {', '.join(AMP)}")
    if amp == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)  # torch has no public name
            fast = device.type == "cpu" and tiles is not None and tiles()
        amp = "bf16" if fast else "none"
    return torch.bfloat16 if amp == "bf16" else None


def autocast(device: torch.device, amp: torch.dtype | None) -> AbstractContextManager:
    """Run the model's operations in ``amp``; None leaves them in float32."""
    return torch.autocast(device.type, amp or torch.bfloat16, enabled=amp is not None)
