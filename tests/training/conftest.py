"""The toys stand in a module that the kill test's subprocesses import too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
