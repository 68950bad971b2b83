"""Random and hostile native calls: `python -m tests.faults.native_fuzz SEED CALLS`.

The functions and the kinds of their arguments come from nanobind's own signatures, so a new
binding is covered as soon as it exists. Any Python exception of the listed kinds is a good answer;
a signal, an endless call or another exception is not. The call under way is printed by its number:
run with the same seed and one call more to see it.
"""

import math
import random
import re
import resource
import sys

import numpy as np

from mlxhog import _native
from mlxhog.errors import ArenaError
from tests.processes import limit_memory

ANSWERS = (TypeError, ValueError, IndexError, OverflowError, MemoryError, BufferError, ArenaError)
SIZES = (0, 1, 1, 2, 2, 3, 4, 8, 16, 64, 1024)
NUMBERS = (
    *range(-1, 5), 16, 64, 1024, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53,
    1 << 62,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 5, (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63),
)  # fmt: skip
WORDS = (
    "",
    "hinge",
    "squares",
    "gelu",
    "silu",
    "relu",
    "racy",
    "private",
    "lossless",
    "\0",
    "x" * 999,
)
WAITS = {"acquire"}  # promise to wait for a living owner, which is this process itself
MOST_ELEMENTS = 1 << 14
MEMORY = 3 << 30
CPU_S = 60


class Fuzz:
    """One seeded stream of calls."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.sizes = (1, 2)
        self.hostile = 0.0  # the share of odd arguments in the call under way

    def array(self, kind):
        """An array of the kind that a signature names, or nearly."""
        rng = self.random
        dtype = re.search(r"dtype=(\w+)", kind)
        shape = re.search(r"shape=\(([^)]*)\)", kind)
        axes = [a.strip() for a in shape[1].split(",") if a.strip()] if shape else []
        if not shape:
            axes = ["*"] * rng.choice((1, 1, 2, 2, 3, 3, 4, 4, 0, 5))
        sizes = [rng.choice(self.sizes) if a == "*" else int(a) for a in axes]
        while np.prod(sizes, dtype=float) > MOST_ELEMENTS:
            sizes[sizes.index(max(sizes))] = 2
        name = dtype[1] if dtype else "float32"
        odd = rng.random() / 6 if rng.random() < self.hostile else 1.0
        if odd < 0.03 and len(sizes) > 1:
            return np.zeros((0, *sizes[1:-1], 1 << 40), name)
        if odd < 0.05:
            name = rng.choice(("float64", "int64", "uint8", ">f4", "complex64", "bool"))
        if name.startswith(("int", "uint")) and rng.random() < self.hostile:
            limits = np.iinfo(name)
            result = np.array(
                [rng.choice((0, 1, 2, limits.min, limits.max)) for _ in range(int(np.prod(sizes)))],
                name,
            ).reshape(sizes)
        else:
            result = np.zeros(sizes, name) if rng.random() < 0.5 else np.ones(sizes, name)
        if odd < 0.07 and result.size:
            return np.repeat(result, 2, axis=0)[::2] if result.ndim else result
        if odd < 0.09:
            result.flags.writeable = False
        elif odd < 0.11:
            result = np.asfortranarray(result)
        elif odd < 0.13:
            # NumPy refuses larger arrays, also where another axis is empty.
            most = 2**62 // math.prod([result.itemsize, *filter(None, result.shape)])
            result = np.broadcast_to(result, (min(rng.choice((2, 1 << 30)), most), *result.shape))
        elif odd < 0.16 and result.itemsize > 1:
            raw = np.zeros(result.nbytes + 1, np.uint8)
            result = raw[1:].view(result.dtype)[: result.size].reshape(result.shape)
        return result

    def value(self, kind):
        """A value for a parameter of this kind."""
        rng = self.random
        if rng.random() < self.hostile / 20:
            return rng.choice((None, "text", 3.5, object(), [], b""))
        alternatives = [part.strip() for part in _split(kind, "|")]
        kind = rng.choice(alternatives)
        if kind == "None":
            return None
        if "ndarray" in kind and not kind.startswith(("collections", "list", "tuple")):
            return self.array(kind)
        inside = re.fullmatch(r"(?:collections\.abc\.Sequence|list|tuple)\[(.*)\]", kind)
        if inside:
            if kind.startswith("tuple"):
                return tuple(self.value(part) for part in _split(inside[1], ","))
            return [self.value(inside[1]) for _ in range(rng.choice((0, 1, 2, 11, 13)))]
        if kind == "int":
            return rng.choice(NUMBERS if rng.random() < self.hostile else (0, 0, 1, 2, *self.sizes))
        if kind == "float":
            return rng.choice((0.0, 1.0, -1.0, 1e-3, 1e308, float("inf"), float("nan")))
        if kind == "bool":
            return rng.random() < 0.5
        if kind in ("str", "object"):
            return rng.choice(WORDS) if kind == "str" else None
        result = getattr(_native, kind.rpartition(".")[2], None)
        return instance(result) if isinstance(result, type) else None

    def call(self, function, receiver):
        """One call; every exception but ANSWERS is a fault."""
        self.hostile = self.random.choice((0.0, 0.0, 0.2, 0.6))
        self.sizes = tuple(self.random.choice(SIZES) for _ in range(self.random.choice((1, 1, 2))))
        parameters = signature(function)
        plain, named = list(receiver), {}
        for name, kind, keyword in parameters[len(receiver) :]:
            if keyword:
                named[name] = (
                    self.random.choice((0, 1, 2)) if name == "threads" else self.value(kind)
                )
            else:
                plain.append(self.value(kind))
        try:
            function(*plain, **named)
        except ANSWERS:
            pass


def _split(text, mark):
    """The parts of `text` between marks outside of brackets."""
    depth, start = 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        if letter == mark and depth == 0:
            yield text[start:at].strip()
            start = at + 1
    yield text[start:].strip()


def signature(function):
    """Name, kind and whether by keyword, of each parameter."""
    text = function.__nb_signature__[0][0]
    inside = text[text.index("(") + 1 : text.rindex(")", 0, text.rindex("->"))]
    results, keyword = [], False
    for part in _split(inside, ","):
        if part == "*":
            keyword = True
        elif part and part != "/":
            name, _, kind = part.partition(":")
            results.append((name.strip(), _default_cut(kind), keyword))
    return results


def _default_cut(kind):
    """A parameter's kind without its default value, which follows the last `=` outside brackets."""
    return next(_split(kind, "=")).strip()


def board(workers=1):
    """Aligned zeros for a board, the ledger's words or a worker table."""
    raw = np.zeros(4096 + 128, np.uint8)
    return raw[-raw.ctypes.data % 128 :][:4096]


def instance(kind):
    """A valid object of a native class."""
    f32, i32 = np.float32, np.int32
    pairs, rows = np.array([[0, 1, 0], [1, 0, 0]], i32), np.zeros((2, 16), f32)
    makers = {
        "Locks": lambda: _native.Locks(np.zeros(8, np.uint32), board(), 1, 1),
        "TicketLedger": ledger,
        "ClassicBoard": lambda: _native.ClassicBoard(board(), 1),
        "ClassicScheme": lambda: _native.ClassicScheme("racy", board(), None, 0, 0, 1),
        "LinearProblem": lambda: _native.LinearProblem(
            np.zeros((2, 4), f32), np.array([0, 2]), np.array([0, 5], i32), np.ones(2, f32),
            np.ones(1, f32), np.zeros(0, f32),
        ),
        "DenseLinearProblem": lambda: _native.DenseLinearProblem(
            np.zeros((2, 4), f32), np.ones((3, 8), f32), np.ones(3, f32), np.zeros(0, f32)
        ),
        "CompletionProblem": lambda: _native.CompletionProblem(
            rows, rows, pairs, rows[0, :2], rows[1, :2]
        ),
        "CutProblem": lambda: _native.CutProblem(
            np.zeros((2, 3), f32), pairs, np.zeros(2, np.uint8)
        ),
    }  # fmt: skip
    return makers[kind.__name__]() if kind.__name__ in makers else None


def ledger():
    """A ledger on memory of random words, more often than not corrupt."""
    words, slots = board()[:640], np.zeros(8, np.uint64)
    for at in range(0, 640, 128):
        words[at : at + 8] = np.frombuffer(
            random.choice((0, 0, 1, 8, 9, 1 << 40, (1 << 64) - 1)).to_bytes(8, "little"), np.uint8
        )
    slots[:] = [random.choice((0, 1, 2, 3, 4, 5, 7, 1 << 40 | 4, (1 << 64) - 1)) for _ in slots]
    return _native.TicketLedger(words, slots)


def targets():
    """Every native function, constructor and method, with the class whose method it is."""
    results = []
    for module in (_native, _native.ops):
        for name, value in vars(module).items():
            if isinstance(value, type):
                for method, function in vars(value).items():
                    if hasattr(function, "__nb_signature__") and method not in WAITS:
                        results.append((f"{name}.{method}", function, value))
            elif hasattr(value, "__nb_signature__"):
                results.append((name, value, None))
    return results


def main(seed, calls):
    """Make the calls; ends normally if each of them did."""
    limit_memory(MEMORY)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    fuzz = Fuzz(seed)
    random.seed(seed)
    known = targets()
    for number in range(calls):
        name, function, kind = fuzz.random.choice(known)
        print(number, name, flush=True)
        if kind is None:
            fuzz.call(function, ())
        elif function is kind.__init__ or name.endswith("__init__"):
            fuzz.call(kind.__init__, (kind.__new__(kind),))
        else:
            receiver = instance(kind)
            if receiver is not None:
                fuzz.call(function, (receiver,))
    print("done", len(known))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
