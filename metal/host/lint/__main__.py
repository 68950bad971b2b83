"""`python -m mlxhog.metal.host.lint [FILE...]`: exit code 1 where a rule is broken."""

import sys
from pathlib import Path

from mlxhog.metal.host.lint import KERNELS, RULES, check_files

files = [Path(name) for name in sys.argv[1:]]
files = files or sorted([*KERNELS.glob("*.h"), *KERNELS.glob("*.metal")])
findings = check_files(files)
print("\n".join(map(str, findings)) or f"{len(files)} files keep {len(RULES)} rules")
sys.exit(bool(findings))
