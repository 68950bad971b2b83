"""The rule of each task in plain Python: the targets that follow from the inputs of one row.

`answer(settings, x, data)` is written from a task's description and shares no code with its
generator. A dense training row of recall has the next token everywhere; its last target is the
answer's, as in a scored row.
"""

from itertools import groupby, permutations

from mlxhog.mad.tasks import IGNORED

Row = list[int]


def in_context_recall(s, x, data):
    values, y = {}, [IGNORED] * len(x)
    marker = -1 if s.multi_query else s.vocab - 1
    tokens = [token for token in x if token != marker]
    for at in range(0, len(tokens), 2):
        last = at + 1 == len(tokens)
        if tokens[at] < s.keys and (s.multi_query or last):
            y[-1 if last else at] = values.get(tokens[at], IGNORED)
        if not last:
            values[tokens[at]] = tokens[at + 1]
    return y


def fuzzy_in_context_recall(s, x, data):
    ends = {"key": s.keys, "value": s.ordinary, "noise": s.ordinary + s.noise_vocab}
    runs, at = [], 0
    for kind, run in groupby(x, lambda t: next((k for k in ends if t < ends[k]), str(t))):
        runs.append((kind, at, tuple(run)))
        at += len(runs[-1][2])
    final = max(n for n, (kind, *_) in enumerate(runs) if kind == "key")
    values, y = {}, [IGNORED] * len(x)
    for n, (kind, at, tokens) in enumerate(runs[: final + 1]):
        if kind == "value":
            key = runs[n - 1][2]
            if key in values and s.multi_query:
                y[at - 1 : at - 1 + len(tokens)] = values[key]
            values.setdefault(key, tokens)
    value = values.get(runs[final][2], ())
    return y[: len(y) - len(value)] + list(value)


def selective_copying(s, x, data):
    content = [token for token in x if token < s.vocab - 2]
    return [IGNORED] * (len(x) - len(content)) + content


def compression(s, x, data):
    noise = range(s.vocab - 1 - s.noise_vocab, s.vocab - 1)
    return [IGNORED if token in noise else token for token in x]


def memorization(s, x, data):
    values = dict(zip(data.kv_keys.tolist(), data.kv_values.tolist(), strict=True))
    return [values.get(x[at - 1], IGNORED) if at % 2 else IGNORED for at in range(len(x))]


def multi_query_associative_recall(s, x, data):
    values = dict(zip(x[0 : 2 * s.n_pairs : 2], x[1 : 2 * s.n_pairs : 2], strict=True))
    queries = range(2 * s.n_pairs, len(x), 2)
    return [values.get(x[at], IGNORED) if at in queries else IGNORED for at in range(len(x))]


def selective_grammar(s, x, data):
    state, y = 0, []
    for token in x:
        after = int(data.grammar[state, token])
        state = state if after == -1 else after
        y.append(state)
    return y


def state_tracking(s, x, data):
    if s.group in ("parity", "Z60"):
        return [sum(x[: at + 1]) % s.tokens for at in range(len(x))]
    n = int(s.group[1])
    elements = [
        p
        for p in permutations(range(n))
        if s.group != "A5" or sum(a > b for i, a in enumerate(p) for b in p[i:]) % 2 == 0
    ]
    number, product, y = {p: k for k, p in enumerate(elements)}, tuple(range(n)), []
    for token in x:
        product = tuple(elements[token][place] for place in product)
        y.append(number[product])
    return y


def dyck(s, x, data):
    stack, y = [], []
    for token in x:
        if token < s.kinds:
            stack.append(token)
        else:
            assert stack.pop() == token - s.kinds
        assert len(stack) <= s.depth
        y.append(s.kinds + stack[-1] if stack else 2 * s.kinds)
    return y


def depo(s, x, data):
    first = next(at for at, token in enumerate(x) if s.names <= token < s.names + s.hops)
    edges = [tuple(x[at + s.edge - 2 : at + s.edge]) for at in range(1, first, s.edge)]
    after, y = dict(edges), [IGNORED] * len(x)
    assert set(after) == set(after.values())
    assert len(after) == len(edges)
    for at in range(first, len(x) - 2, 4):
        if x[at] == s.vocab - 1:
            break
        node = x[at + 1]
        for _ in range(x[at] - s.names + 1):
            node = after[node]
        y[at + 2] = node
    return y


def mano(s, x, data):
    def value(at):  # of the expression at a place, and its end
        if x[at] < s.modulus:
            return x[at], at + 1
        a, middle = value(at + 1)
        b, end = value(middle)
        return (a + b, a - b, a * b)[x[at] - s.modulus] % s.modulus, end

    y, at = [IGNORED] * len(x), 0
    while at + 1 < len(x) and x[at + 1] != s.vocab - 1:
        result, end = value(at + 2)
        assert end - at - 2 == 2 * (x[at + 1] - s.modulus - 2) + 1  # as many operations as said
        y[end] = result
        at = end + 2
    return y


noisy_in_context_recall = in_context_recall


def expected(settings, x, y, data, *, train):
    """The targets of a row: the answers, and in dense training rows of recall the next tokens.

    Targets that the inputs do not determine are the row's own.
    """
    answers = globals()[settings.name.replace("-", "_")](settings, x, data)
    if getattr(settings, "fuzzy_compat", False) and answers[-1] == IGNORED:
        return y  # in the reference, some final keys were not shown before
    if train and settings.name.endswith("in-context-recall"):
        return [*x[1:], answers[-1]]
    if getattr(settings, "random_fill", False):  # a filler may be a key
        return [a if target != IGNORED else target for a, target in zip(answers, y, strict=True)]
    return answers
