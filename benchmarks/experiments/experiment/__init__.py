"""Modules that experiments share. Importing it puts benchmarks/ on the path, for the harness."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
