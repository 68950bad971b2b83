"""Fail if a wheel lacks something, or holds something at the top level besides mlxhog."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"mlxhog": "mlxhog", "mlxhog/models": "models", "mlxhog/metal": "metal"}
CARRIED = set(".py .pyi .yaml .json .jinja .xz .md .h .cpp .metal .typed .js .css".split())
HEADERS = {"include"}  # folders of the shim's headers, named as Metal's: metal_stdlib


def missing(wheel: Path) -> list[str]:
    """Name every file of the tree that the wheel should hold and does not, and every stray one."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{inside}/{file.relative_to(ROOT / folder).as_posix()}"
        for inside, folder in MAPPED.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in CARRIED or (file.parent.name in HEADERS and file.is_file())
    }
    expected |= {f"mlxhog/_native/{stub}.pyi" for stub in ("__init__", "ops")}
    problems = [f"not in the wheel: {name}" for name in sorted(expected - names)]
    if not any(name.startswith("mlxhog/_native") and name.endswith(".so") for name in names):
        problems.append("not in the wheel: the native module mlxhog/_native")
    tops = {name.split("/")[0] for name in names} - {"mlxhog"}
    return problems + [f"stray top level: {top}" for top in tops if not top.endswith(".dist-info")]


if __name__ == "__main__":
    problems = missing(Path(sys.argv[1]))
    print("\n".join(problems) or f"{sys.argv[1]} is complete")
    sys.exit(bool(problems))
