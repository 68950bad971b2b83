"""The kernels in `kernels/`, and launches of them."""

from pathlib import Path

from mlxhog.metal.kernel import Argument, Launch, MetalKernel

KERNELS = Path(__file__).parent / "kernels"
DONE = Argument(name="done", dtype="uint32")
X, Y = Argument(name="x"), Argument(name="y")


def probe(header, call, inputs=(X,), outputs=(Y,), memory="", **changes):
    """A kernel of `kernels/`, whose launches `count` and `on` make."""
    name = call.partition("(")[0]
    source = f"{memory}\nmlxhog::{call};"
    how = {"header": str(KERNELS / header), "source": source, **changes}
    return MetalKernel(name=name, inputs=inputs, outputs=outputs, launch=None, **how)


AT = "thread_position_in_grid.x"
COUNTED = (
    Argument(name="shared", writes=True),
    Argument(name="step", scalar=True),
    Argument(name="words", dtype="uint32", scalar=True),
)
ATOMIC_COUNT, PLAIN_COUNT = (
    probe("counting.h", f"{name}(shared, step, words, done, {AT})", COUNTED, (DONE,))
    for name in ("atomic_count", "plain_count")
)
GROUP_SUM = probe(
    "meeting.h",
    f"group_sum(x, y, sums, {AT}, thread_index_in_simdgroup, simdgroup_index_in_threadgroup, "
    "simdgroups_per_threadgroup)",
    memory="threadgroup float sums[32];",
    uses_barriers=True,
)
DIVERGENT = probe(
    "meeting.h",
    f"divergent(x, y, returns, {AT}, threads_per_threadgroup.x)",
    (X, Argument(name="returns", dtype="uint32", scalar=True)),
    uses_barriers=True,
)
FLAGS = tuple(
    Argument(name=name, dtype="uint32", scalar=True) for name in ("flags", "of_simdgroup")
)
_AT = f"flags, of_simdgroup, {AT}, thread_index_in_threadgroup, threads_per_threadgroup.x"
BY_THREADGROUP, BY_TURNS = (
    probe("meeting.h", f"{name}(x, y, tile, {_AT})", (X, *FLAGS),
          memory="threadgroup float tile[64];", uses_barriers=True)
    for name in ("by_threadgroup", "by_turns")
)  # fmt: skip
BY_DEVICE = probe(
    "meeting.h",
    f"by_device(x, y, z, {_AT})",
    (X, *FLAGS),
    (Y, Argument(name="z")),
    uses_barriers=True,
)
UNWRITTEN = probe(
    "meeting.h",
    f"unwritten(x, y, tile, {AT}, thread_index_in_threadgroup)",
    memory="threadgroup float tile[64];",
)


def count(kernel, shared, adds):
    """A launch that adds 1.0 `adds` times to the words of `shared` in turn."""
    inputs = {"shared": shared, "step": 1.0, "words": shared.size}
    return Launch(kernel=kernel, inputs=inputs, outputs={"done": (1,)}, grid=(adds, 1, 1))


def on(kernel, x, *, threadgroup=(256, 1, 1), **scalars):
    """A launch of one thread for each element of x."""
    how = {
        "inputs": {"x": x, **scalars},
        "outputs": {one.name: (x.size,) for one in kernel.outputs},
    }
    return Launch(kernel=kernel, grid=(x.size, 1, 1), threadgroup=threadgroup, **how)
