"""`mlxhog classic predict`: what a solved problem says of a file."""

from __future__ import annotations

import sys
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.errors import ConfigError

ABOUT = """\
Say what the weights of `mlxhog classic PROBLEM --save MODEL` make of FILE, which has the format of
the problem's own data. A line for every example, in the file's order, columns separated by tabs:

svm, synthetic-svm                 LABEL SCORE, the score's sign is the label
logistic                           LABEL PROBABILITY, of the positive label
least-squares, linear-regression   VALUE; where labels are -1 and +1, LABEL VALUE
image-svm                          CLASS SCORE
matrix-completion                  USER ITEM RATING
graph-cuts                         VERTEX LABEL, each vertex once; ? where it was in no edge

They go to standard output, or to --out. How right they are is said on stderr, beside what training
measured on its test data. Labels and ratings that are in no range are predicted and not counted."""
EXAMPLES = (
    "classic predict svm.safetensors test.svm",
    "classic predict svm.safetensors test.svm --out predictions.txt",
    "classic predict ratings.safetensors ratings.csv --json",
)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("classic predict", ABOUT, EXAMPLES, ("MODEL", "FILE"))
    flags.argument("model", metavar="MODEL", help="a file of weights")
    flags.argument("file", metavar="FILE", help="data; .gz and .bz2 are unpacked")
    flags.argument("--out", metavar="PATH", help="write the predictions into this file")
    flags.argument("--json", action="store_true", help="one JSON object about them, without them")
    flags.argument(
        "--quiet", action="store_true", help="no word about them; with --out nothing but errors"
    )
    parsed = flags.parse(arguments)
    if parsed.problems:
        raise ConfigError("\n".join(parsed.problems))
    how = parsed.other
    # These import NumPy: wrong flags are answered before.
    from mlxhog.classic import model as models
    from mlxhog.files import plain_json
    from mlxhog.files.durable import disk_errors, replace_file
    from mlxhog.report.streams import verbatim

    target = None if how.out is None else Path(how.out).expanduser()
    if target is not None:
        models.check_target(target)
    model = models.load(Path(how.model).expanduser())
    prediction = models.predict(model, Path(how.file).expanduser())
    if target is not None:
        with disk_errors(f"writing {target}"):
            replace_file(target, "".join(f"{line}\n" for line in prediction.lines()).encode())
    if how.json:
        record = {
            "problem": model.problem,
            "examples": prediction.examples,
            "unknown": prediction.unknown,
            "measure": prediction.measure,
            "value": prediction.value,
            "trained": prediction.trained,
            "out": None if target is None else str(target),
        }
        print(plain_json.dumps(record).decode())
        return 0
    if not how.quiet:
        out = sys.stderr if target is None else sys.stdout
        print(models.answer(model, prediction), file=out)
    if target is None:
        data = verbatim(sys.stdout)  # which keeps tabs
        for line in prediction.lines():
            data.write(f"{line}\n")
    return 0
