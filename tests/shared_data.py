"""Where the real photographs lie, for the tests that read them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
BCCD = SHARED / "bccd"
TINY_COCO = SHARED / "tiny_coco"

needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="shared/data/bccd is not beside the repo")
needs_tiny_coco = pytest.mark.skipif(
    not TINY_COCO.is_dir(), reason="shared/data/tiny_coco is not beside the repo"
)
