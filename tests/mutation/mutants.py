"""Small faults of Python text: where they are possible, and which of them a seed chooses."""

import ast
import hashlib
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

SOURCES = ("mlxhog", "models", "metal")
OPPOSITE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Lt: ast.GtE, ast.GtE: ast.Lt,
    ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip
BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
DROPPED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)
UNSEEN = ("TYPE_CHECKING", "__name__ == '__main__'")


@dataclass(frozen=True)
class Mutant:
    """A replacement of characters `start` to `end` of a file by a text."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    old: str
    new: str

    @property
    def folder(self):
        """The stratum: a package of mlxhog, or models, or metal."""
        parts = Path(self.file).parts
        return "/".join(parts[: 2 if parts[0] == "mlxhog" and len(parts) > 2 else 1])

    @property
    def label(self):
        """Its name."""
        return f"{self.file}:{self.line} {self.kind}: {self.old} -> {self.new}"

    def applied(self, text):
        """The file's text with the fault."""
        assert text[self.start : self.end] == self.old
        return text[: self.start] + self.new + text[self.end :]


def mutants(file, text):
    """Every mutant of a file: no annotation, message, assertion or decorator is touched."""
    rows = text.splitlines(keepends=True)
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row))

    def offset(line, column):  # columns of `ast` count bytes of UTF-8
        return starts[line - 1] + len(rows[line - 1].encode()[:column].decode())

    for node in _visible(ast.parse(text)):
        for part, kind, new in _faults(node):
            start = offset(part.lineno, part.col_offset)
            end = offset(part.end_lineno, part.end_col_offset)
            yield Mutant(file, part.lineno, kind, start, end, text[start:end], new)


def _visible(node):
    """The node and those below, without what cannot or need not be noticed."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in UNSEEN:
        return
    yield node
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return  # our own impossibilities; messages; Python 3.11 has no columns in f-strings
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "type_params"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _visible(child)


def _faults(node):
    """The part of the text that a fault replaces, its kind, and the text instead."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right):
            for kind, table in (("comparison", OPPOSITE), ("boundary", BOUNDARY)):
                if type(op) in table:
                    faulty = ast.Compare(left, [table[type(op)]()], right)
                    yield node, kind, f"({ast.unparse(faulty)})"
        case ast.BoolOp(op=op, values=values):
            yield node, "branch", f"({ast.unparse(ast.BoolOp(OPPOSITE[type(op)](), values))})"
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            if not any(isinstance(x, ast.Constant | ast.JoinedStr) and not _number(x)
                       for x in (left, right)):  # fmt: skip
                faulty = ast.BinOp(left, OPPOSITE[type(node.op)](), right)
                yield node, "arithmetic", f"({ast.unparse(faulty)})"
        case ast.Constant(value=bool() as value):
            yield node, "constant", str(not value)
        case ast.Constant(value=int() | float() as value):
            yield node, "constant", repr(value + 1 if isinstance(value, int) else 2 * value or 1.0)
        case ast.If(test=test) | ast.IfExp(test=test):
            yield test, "branch", f"(not ({ast.unparse(test)}))"
    if isinstance(node, DROPPED) and not _needed(node):
        yield node, "dropped", "pass"


def _number(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _needed(node):
    """Whether the file would not even be imported, or nothing is lost, without a statement."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Call)
    targets = node.targets if isinstance(node, ast.Assign) else []
    return any(isinstance(target, ast.Name | ast.Tuple) for target in targets)


def sample(tree, files, *, seed, n):
    """Choose mutants, as many of each folder; fewer are the first of more.

    The order within a folder is that of a hash of the seed, the file's name and the faulty text: a
    line that moves keeps its rank, so another tree is judged by almost the same mutants.
    """
    folders = {}
    for file in sorted(files):
        for mutant in mutants(file, (tree / file).read_text(encoding="utf-8")):
            words = f"{seed} {Path(file).name} {mutant.kind} {mutant.old} {mutant.new}"
            rank = hashlib.sha256(words.encode()).hexdigest()
            folders.setdefault(mutant.folder, {}).setdefault(rank, mutant)
    ranked = ([by_rank[rank] for rank in sorted(by_rank)] for by_rank in folders.values())
    turns = (mutant for turn in zip_longest(*ranked) for mutant in turn if mutant is not None)
    return [mutant for mutant, _ in zip(turns, range(n), strict=False)]
