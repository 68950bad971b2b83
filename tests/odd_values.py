"""Values that nobody writes, at every place of a JSON value: what a stranger's file may hold."""

import copy

MISSING = object()
ODD = (
    "x", "", [], [1], [None], {}, {"a": [1]}, None, True, 0, -1, 1e308, float("nan"), 2**62,
    10**99, [[[[1]]]], "\x1b[31m", MISSING,
)  # fmt: skip


def places(value, above=()):
    """The keys and indices that lead to each part of a value, and to the whole."""
    yield above
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*above, key))


def variants(value):
    """Yield each place, an odd value there, and the whole with it."""
    for place in places(value):
        for odd in ODD if place else ODD[:-1]:
            whole = [copy.deepcopy(value)]
            *way, last = (0, *place)
            at = whole
            for key in way:
                at = at[key]
            if odd is MISSING:
                del at[last]
            else:
                at[last] = odd
            yield place, odd, whole[0]
