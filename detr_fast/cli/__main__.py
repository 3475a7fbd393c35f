"""``python -m detr_fast.cli`` is ``detr-fast``."""

import sys

from detr_fast.cli import main

sys.exit(main())
