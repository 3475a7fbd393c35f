"""``python -m detr_fast.cli`` is ``detr-fast``."""

import sys

from . import main

sys.exit(main())
