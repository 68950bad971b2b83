"""`python -m mlxhog.metal.host.lint [FILE...]`: exit code 1 where a rule is broken."""

import sys
from pathlib import Path

from mlxhog.metal.host.lint import KERNELS, RULES, check_files


def main(names: list[str]) -> int:
    """Check the named files, by default all kernels, and print what was found."""
    files = [Path(name) for name in names]
    files = files or sorted([*KERNELS.glob("*.h"), *KERNELS.glob("*.metal")])
    findings = check_files(files)
    print("\n".join(map(str, findings)) or f"{len(files)} files keep {len(RULES)} rules")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
