"""The folder of shared measurements; tests that need it are skipped if it is missing."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("STIPULE_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
RESPONSES = SHARED / "llada_8b_instruct_generations_128.jsonl.gz"

needs_shared = pytest.mark.skipif(not RESPONSES.exists(), reason=f"no shared data at {SHARED}")
