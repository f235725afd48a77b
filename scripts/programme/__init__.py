"""What `scripts/gpu_programme.py` measures, one module a part."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the diffgen of this checkout, which need not be installed
