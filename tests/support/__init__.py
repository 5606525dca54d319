"""What the tests share and is no test itself."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
