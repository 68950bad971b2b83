"""A set of promises holds as programs of users meet it: spawned workers, real flushes, no haste.

The rest of the suite forks its workers, flushes nothing to the disk, and polls more often.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = "training/supervisor/test_deaths.py", "checkpoint/test_checkpoint.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_step_and_no_checkpoint_is_lost_in_programs_of_users():
    files = [str(ROOT / "tests" / name) for name in PROMISES]
    command = [sys.executable, "-m", "pytest", "--as-users", "-q", "-p", "no:cacheprovider", *files]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
