"""The arena imports no framework."""

import subprocess
import sys


def test_importing_the_arena_and_the_ledger_imports_no_framework():
    text = (
        "import sys, mlxhog.arena, mlxhog.data.ledger;"
        "print([m for m in ('torch', 'mlx', 'transformers', 'jsonargparse') if m in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", text], capture_output=True, check=True)
    assert child.stdout.decode().strip() == "[]"
