"""The process of a worker, from its spawn to its exit code."""

import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from mlxhog.base.inside import inside, subfolder
from mlxhog.base.processes import FAULTS, end_by
from mlxhog.base.resources import shortage
from mlxhog.errors import MetalError, MlxhogError, is_lost_gpu, one_line
from mlxhog.training.plan.job import LOST_GPU_EXIT_CODE, METAL_EXIT_CODE, Job

LAST_LINE = 1000
"""Characters of the log's last line, which the supervisor quotes, of an error with several."""


def main(pipe: Connection, job: Job) -> None:
    """Entry point of the spawned process; ends it with the error's exit code.

    If the run changes its strategy, `pipe` brings another job.
    """
    sys.stdout.flush()
    try:  # `TorchBackend` reads it; if it cannot be written, output to it is dropped
        subfolder(job.run_dir, job.log.parent.name)
        log = open(job.log, "a+", buffering=1, opener=inside(job.run_dir))
    except OSError:
        log = open(os.devnull, "w")
    with log as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            from mlxhog.training.worker.loop import run  # which the supervisor does not load

            run(pipe, job)
        except FAULTS as fault:
            end_by(fault)
        except (MlxhogError, MemoryError, OSError, RuntimeError) as error:
            text = str(error)
            if is_lost_gpu(error):
                code = LOST_GPU_EXIT_CODE
            elif isinstance(error, MetalError):
                code = METAL_EXIT_CODE
            elif isinstance(error, MlxhogError):
                code = error.exit_code
            elif reason := shortage(error):
                text, code = reason, 1
            elif "error:" in text:  # a compiler's text, whose last line says nothing
                code = 1
            else:
                raise
            lines = [text, one_line(text, LAST_LINE)] if "\n" in text else [text]
            with suppress(OSError):  # the disk of the log may be full
                print(*(f"error: {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)
            os._exit(code)
