"""Other code bases' matchers, on compiled code. Importing this imports none of those."""

from detr_fast.interop.transformers_patch import TransformersPatch, patch_transformers

__all__ = ["TransformersPatch", "patch_transformers"]
