"""The kernels in `kernels/`, declared as the product declares its own."""

from pathlib import Path

from mlxhog.metal.kernel import Argument, Kernel, Launch

KERNELS = Path(__file__).parent / "kernels"
DONE = Argument(name="done", dtype="uint32")


def _no_sample(_, n):
    raise AssertionError(f"probes have no sample of {n}")


def probe(name, header, source, inputs, outputs=(DONE,), **changes):
    """A kernel of `kernels/`."""
    return Kernel(
        name=name,
        header=str(KERNELS / header),
        source=source,
        inputs=inputs,
        outputs=outputs,
        sample=_no_sample,
        **changes,
    )


def _count(name):
    inputs = (
        Argument(name="shared", writes=True),
        Argument(name="step", scalar=True),
        Argument(name="words", dtype="uint32", scalar=True),
    )
    arguments = ", ".join(argument.name for argument in inputs)
    call = f"mlxhog::{name}({arguments}, done, thread_position_in_grid.x);"
    return probe(name, "counting.h", call, inputs)


ATOMIC_COUNT = _count("atomic_count")
PLAIN_COUNT = _count("plain_count")

X, Y = Argument(name="x"), Argument(name="y")
GROUP_SUM = probe(
    "group_sum",
    "meeting.h",
    "threadgroup float sums[32];\n"
    "mlxhog::group_sum(x, y, sums, thread_position_in_grid.x, thread_index_in_simdgroup, "
    "simdgroup_index_in_threadgroup, simdgroups_per_threadgroup);",
    (X,),
    (Y,),
    lockstep=True,
)
SIMD_FUNCTIONS = probe(
    "simd_functions",
    "meeting.h",
    "mlxhog::simd_functions(x, y, thread_position_in_grid.x);",
    (X,),
    (Y,),
    lockstep=True,
)
DIVERGENT = probe(
    "divergent",
    "meeting.h",
    "mlxhog::divergent(x, y, returns, thread_position_in_grid.x, threads_per_threadgroup.x);",
    (X, Argument(name="returns", dtype="uint32", scalar=True)),
    (Y,),
    lockstep=True,
)
MATRIX_PRODUCT = probe(
    "matrix_product",
    "meeting.h",
    "threadgroup float tile[64];\nmlxhog::matrix_product(x, y, tile, thread_position_in_grid.x);",
    (X,),
    (Y,),
    lockstep=True,
)
UNWRITTEN = probe(
    "unwritten",
    "meeting.h",
    "threadgroup float tile[64];\n"
    "mlxhog::unwritten(x, y, tile, thread_position_in_grid.x, thread_index_in_threadgroup);",
    (X,),
    (Y,),
)
POSITIONS = probe(
    "positions",
    "positions.h",
    "mlxhog::positions(out, thread_position_in_grid, thread_position_in_threadgroup, "
    "threadgroup_position_in_grid, threads_per_grid, threadgroups_per_grid, "
    "threads_per_threadgroup, dispatch_threads_per_threadgroup, thread_index_in_threadgroup, "
    "thread_index_in_simdgroup, simdgroup_index_in_threadgroup);",
    (X,),
    (Argument(name="out", dtype="uint32"),),
)
ARRIVAL = probe(
    "arrival",
    "positions.h",
    "mlxhog::arrival(counter, order, threadgroup_position_in_grid.x, thread_index_in_threadgroup);",
    (Argument(name="counter", dtype="uint32", writes=True),),
    (Argument(name="order", dtype="uint32"),),
)


def count(kernel, shared, adds):
    """A launch that adds 1.0 `adds` times to the words of `shared` in turn."""
    return Launch(
        kernel=kernel,
        inputs={"shared": shared, "step": 1.0, "words": shared.size},
        outputs={"done": (1,)},
        grid=(adds, 1, 1),
        group=(256, 1, 1),
    )


def on(kernel, x, *, n=None, group=(256, 1, 1), width=1, **scalars):
    """A launch of one thread for each element of x."""
    n = x.size if n is None else n
    return Launch(
        kernel=kernel,
        inputs={"x": x, **scalars},
        outputs={"y": (n * width,)},
        grid=(n, 1, 1),
        group=group,
    )
