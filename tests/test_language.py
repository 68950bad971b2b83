"""The product speaks its field's language: no private phrase, unique names, docstrings that read.

`PHRASES` are never right, in whatever sentence; plain words such as number, row and round are not
in it. What they are looked for in is what users read: help, messages, documents, public docstrings.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.pairs import each_of

ROOT = Path(__file__).parents[1]
PHRASES = {
    r"step sizes?": "learning rate",
    r"largest gradient norm": "gradient clipping",
    r"warm-up": "warmup",
    r"hyper-parameters?|numbers (of|for) (an?|the) (choice|component|strategy|optimizer|schedule"
    r"|layer)": "hyperparameters",
    r"held-?out (text|part|set|loss|data|document)": "validation",
    r"passes over (the|a|its|their) (\w+ )?(text|data|examples)": "epochs",
    r"without a new best": "without improvement",
    r"counts of [\w{}]+ bytes|counted n-grams|mark `?counts": "n-gram baseline",
    r"(counted )?pairs of words|counted pairs": "bigram statistics",
    r"pieces of words|pieces that span": "subword tokens",
    r"words drawn|drawn (words|ones)|sampled head": "sampled softmax, negatives",
    r"text in the package|package's text|corpus in the package": "bundled corpus",
    r"(multiply|products) in bfloat16|narrow products?": "bf16 matmuls, mixed precision",
    r"what is learned of|learns? the answers": "loss masking, loss on completions",
    r"late (gradients?|steps?|updates?)|lateness|ageing": "stale gradient, staleness",
    r"look(s|ed|ing)?[ -]ahead": "weight prediction, extrapolated parameters",
    r"torn (batch(es)?|updates?)": "partially applied",
    r"dropped steps?": "skipped update, dropped update",
    r"add(s|ed|ing)? (its|their|each|an?|the)( \w+)? steps?": "apply an update",
    r"steps? (is|are|was|were) (being )?added|steps? (half )?added": "update applied",
    r"(updates|writes|increments|steps|gradients) (that )?meet": "conflict, overlap",
    r"workers (that|which) average|averaging workers": "synchronous data parallelism",
    r"(sync|shares),? by speed": "speed-weighted shares",
    r"copies (of the \w+ )?for readers|parameter copies": "snapshots",
    r"marks of (the )?writers": "seqlock counters",
    r"inbox": "parameter buffer",
    r"side jobs?": "background tasks",
    r"holds? still|holding still": "quiesced",
    r"workers? made slow|slow(ed)? (down )?for good": "straggler, persistently slow",
    r"\bseats?\b": "worker handle",
    r"channel maps?": "channel mixer",
    r"cannot be told|untold": "inconclusive",
    r"hold(s|ing)? in part": "partly supported",
    r"(verdict: |\*\*)(met|missed|described|(does not )?holds?)\b": "supported, refuted",
    r"has the bits of": "bitwise identical",
    r"spelt|spell (an?|the|it)\b": "written, format",
    r"optimis|learnt|colour|initialis|normalis|orthogonalis|serialis|synchronis|behaviour"
    r"|neighbour|licence": "American spelling",
}
NEVER = [(re.compile(rf"\b({bad})", re.IGNORECASE), word) for bad, word in PHRASES.items()]
NO_BEGINNING = re.compile(r"(That|Those|Of|Whose)\b|\S+$")
SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(path):
    """The syntax of a file."""
    return ast.parse(path.read_text("utf-8"))


@cache
def sources(ending="py"):
    """Every file of the product with this ending, and its name."""
    files = [
        one
        for top in ("mlxhog", "models", "metal", "examples")
        for one in (ROOT / top).rglob(f"*.{ending}")
    ]
    return {one: str(one.relative_to(ROOT)) for one in sorted(files)}


def docstrings(path):
    """Node, name and text of every docstring, also of those below an assignment."""
    for scope in ast.walk(tree(path)):
        if not isinstance(scope, SCOPES):
            continue
        name = getattr(scope, "name", path.stem)
        for before, node in zip([None, *scope.body], scope.body, strict=False):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                is_own, value = before is None, node.value
                named = name if is_own else ast.unparse(before).partition(" ")[0].strip(":")
                if isinstance(value.value, str) and (
                    is_own or isinstance(before, ast.Assign | ast.AnnAssign)
                ):
                    yield value, named, value.value


def said(path):
    """Line and text of what a file says to others: its strings, and its public docstrings."""
    documents = {id(node): name for node, name, _ in docstrings(path)}
    inside = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
            parts = (one.value if isinstance(one, ast.Constant) else "{}" for one in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_private = documents.get(id(node), "").startswith("_")
            if id(node) not in inside and not is_private and " " in node.value:
                yield node.lineno, node.value


def wrong(name, lines):
    """What lines of a text say that nobody of the field would."""
    flat = [(line, " ".join(text.split())) for line, text in lines]
    return [f"{name}:{line}: {found[0]!r}: {word}" for line, text in flat
            for never, word in NEVER if (found := never.search(text))]  # fmt: skip


def test_no_help_no_message_and_no_public_docstring_has_a_private_phrase():
    found = [line for path, name in sources().items() for line in wrong(name, said(path))]
    for path, name in [one for kind in ("js", "html", "yaml") for one in sources(kind).items()]:
        found += wrong(name, enumerate(path.read_text("utf-8").splitlines(), 1))
    assert not found, "\n".join(found)


# docs/generated/options.md has the helps, which are looked at above.
PAGES = [page for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "benchmarks/claims.yaml")
         for page in ROOT.glob(pattern) if page.name != "options.md"]  # fmt: skip


@each_of("page", sorted(PAGES), ids=lambda page: page.name)
def test_no_document_has_a_private_phrase(page):
    text = page.read_text("utf-8")
    paragraphs = enumerate(text.split("\n\n") if page.suffix == ".md" else text.splitlines(), 1)
    assert not (found := wrong(page.name, paragraphs)), "\n".join(found)


def test_every_class_of_the_product_has_a_name_of_its_own():
    owners = defaultdict(set)
    for path, name in sources().items():
        # Framework twins may share a name, and an example with a file of the product.
        if not re.search(r"(^|[/_])(torch|mlx|mlx_lm)\.py$|^examples/", name):
            for node in tree(path).body:
                if isinstance(node, ast.ClassDef):
                    owners[node.name].add(name)
    twice = {name: sorted(files) for name, files in owners.items() if len(files) > 1}
    assert not twice


def test_every_docstring_begins_with_a_sentence_an_imperative_or_a_noun_phrase():
    found = []
    for path, name in sources().items():
        for node, owner, text in docstrings(path):
            first = text.strip().partition("\n")[0]
            if NO_BEGINNING.match(first):
                found.append(f"{name}:{node.lineno}: {owner}: {first!r}")
    assert not found, "\n".join(found)
