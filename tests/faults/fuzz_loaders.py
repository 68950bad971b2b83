"""Give every loader mutated files, and say where one raised something else than our errors.

    python -m tests.faults.fuzz_loaders --mutations 100000 --seed 7

Mutation `n` of a subject is a function of the seed, the subject's name and `n`. The process bounds
its own memory and the time of one case, so run it as a child: what crashes it names the case.
"""

import argparse
import faulthandler
import json
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from random import Random

from mlxhog.errors import MOST_CHARACTERS, MlxhogError
from tests.faults.loaders import SUBJECTS
from tests.faults.mutations import mutate
from tests.processes import limit_memory

CASE_S = 10
"""Seconds of one case; the slowest takes less than one on a quiet machine."""
ROOM_BYTES = 3 << 30
"""Memory beside what the process has when it begins."""


class Hang(BaseException):
    """A case took longer than `CASE_S`."""


def failures_of(subject, seed, folder, count):
    """The failures in mutations 0 .. count - 1 of a subject, in a folder of its own."""
    files = {path: path.read_bytes() for path in subject.write(folder)}
    subject.read(folder)  # what is valid is read
    for number in range(count):
        rng = Random(f"{seed}/{subject.name}/{number}")
        path = rng.choice(sorted(files))
        path.write_bytes(mutate(files[path], rng))
        print(f"{subject.name}, mutation {number} of {path.name}", file=sys.stderr)
        if (error := failure(subject, folder)) is not None:
            yield {"subject": subject.name, "number": number, "file": path.name, "error": error}
        path.write_bytes(files[path])


def failure(subject, folder):
    """Read mutated files; None where that ended in a value or one of our errors."""
    faulthandler.dump_traceback_later(6 * CASE_S, exit=True)
    signal.alarm(CASE_S)
    try:
        subject.read(folder)
    except MlxhogError as error:
        n = len(str(error))
        return None if 0 < n < MOST_CHARACTERS + 100 else f"{n} characters: {str(error)[:200]}"
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return "".join(traceback.format_exception(error)[-6:])[-3000:]
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return None


def main():
    """Run the command; prints a JSON line per failure and one summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=5200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="name of one subject")
    options = parser.parse_args()
    warnings.simplefilter("error")

    def hang(number, frame):
        raise Hang(f"more than {CASE_S} s")

    signal.signal(signal.SIGALRM, hang)
    limit_memory(ROOM_BYTES, more=True)
    subjects = [s for s in SUBJECTS if options.only in (None, s.name)]
    shares, failures, total = sum(subject.weight for subject in subjects), 0, 0
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            count = -(-options.mutations * subject.weight // shares)
            total += count
            for case in failures_of(subject, options.seed, Path(folder), count):
                failures += 1
                print(json.dumps(case), flush=True)
    print(json.dumps({"mutations": total, "failures": failures}), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
