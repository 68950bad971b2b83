"""`python -m tools.lint [FILE...]`: exit code 1 where a rule is broken."""

import argparse
import sys
from pathlib import Path

from tools.lint import check_files, check_kernels
from tools.lint.rules import RULES


def main(names: list[str]) -> int:
    """Check the named files, by default all kernels, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.lint", description="Find what Metal forbids in sources."
    )
    parser.add_argument("files", nargs="*", type=Path, help="all kernels by default")
    files = parser.parse_args(names).files
    for file in files:
        if not file.is_file():
            parser.error(f"there is no file {file}")
    findings = check_files(files) if files else check_kernels()
    print("\n".join(map(str, findings)) or f"no offence against {len(RULES)} rules")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
