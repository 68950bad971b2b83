"""Print what pyproject.toml requires: `build`, or a group such as `test` with the package's own."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


def extra(name: str) -> Iterator[str]:
    """The requirements of an optional group, and of the groups that it names: `mlxhog[peers]`."""
    for requirement in PROJECT["project"]["optional-dependencies"][name]:
        if requirement.startswith("mlxhog["):
            for inner in requirement[len("mlxhog[") : -1].split(","):
                yield from extra(inner)
        else:
            yield requirement


if __name__ == "__main__":
    if sys.argv[1] == "build":
        print("\n".join(PROJECT["build-system"]["requires"]))
    else:
        print("\n".join([*PROJECT["project"]["dependencies"], *extra(sys.argv[1])]))
