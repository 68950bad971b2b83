"""Plain NumPy references of the problems on pairs: operation by operation as the native loop."""

import numpy as np

# -- matrix completion -----------------------------------------------------------------------------

LANES = 16


def _dot(a, b):
    """The product of two rows, a multiple of 16 floats wide, in the order of a SIMD loop.

    Sixteen partial sums, which are then halved: 16 -> 8 -> 4 -> 2 -> 1.
    """
    products = (a * b).reshape(-1, LANES)
    sums = products[0].copy()
    for group in products[1:]:
        sums += group
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return np.float32(sums[0])


def _changes(left, right, rating, shrink_l, shrink_r, gamma):
    """What one example subtracts from both rows, from their old values.

    gamma (2 e R_v + shrink_u L_u) and the same with the roles exchanged, where e = L_u . R_v - Z
    and shrink_u = mu / d_u.
    """
    f32 = np.float32
    pull = f32(2) * f32(gamma) * (_dot(left, right) - f32(rating))
    change_l = pull * right + f32(gamma) * f32(shrink_l) * left
    change_r = pull * left + f32(gamma) * f32(shrink_r) * right
    return change_l, change_r


def _within_norm(row, longest):
    """The row, scaled down to length `longest` where it is longer; 0 allows any length."""
    squared = _dot(row, row)
    if longest == 0 or not squared > np.float32(longest) * np.float32(longest):
        return row
    shorter = row * (np.float32(longest) / np.sqrt(squared))
    return shorter


def completion_epoch(
    left, right, ratings, shrink_users, shrink_items, gamma, *, batch=1, longest=0.0
):
    """Take a step for each `batch` ratings (user, item, value), changing both factors in place.

    All gradients of a step are taken at the same values, and their mean is subtracted.
    """
    for start in range(0, len(ratings), batch):
        examples = ratings[start : start + batch]
        step = np.float32(gamma) / np.float32(len(examples))
        changes = [
            _changes(left[u], right[v], value, shrink_users[u], shrink_items[v], float(step))
            for u, v, value in examples
        ]
        for (u, v, _), (change_l, change_r) in zip(examples, changes, strict=True):
            left[u] = _within_norm(left[u] - change_l, longest)
            right[v] = _within_norm(right[v] - change_r, longest)


# -- graph cuts ------------------------------------------------------------------------------------

ROUNDING = 2.0**-22  # of a sum, per entry


def project(row):
    """A row back to where it may be: the simplex, or [0, 1] where two labels are one scalar."""
    if len(row) == 1:
        return np.clip(row, row.dtype.type(0), row.dtype.type(1))
    return project_onto_simplex(row)


def _read(row):
    """A row as it is read: projected where it is off the simplex by more than rounding."""
    if len(row) == 1:
        return row
    off = abs(np.cumsum(row)[-1] - row.dtype.type(1))
    return project(row) if off > row.dtype.type(len(row) * ROUNDING) else row


def cut_epoch(x, edges, fixed, gamma, *, batch=1):
    """Take a step for each `batch` edges (head, tail, weight), changing the free rows in place.

    All signs of a step are taken at the same x; its edges then move their ends one after the other.
    """
    f = x.dtype.type
    for start in range(0, len(edges), batch):
        examples = edges[start : start + batch]
        scale = f(gamma) / f(len(examples))
        signs = [np.sign(_read(x[u]) - _read(x[v])) for u, v, _ in examples]
        for (u, v, weight), sign in zip(examples, signs, strict=True):
            move = scale * f(weight) * sign
            if not fixed[u]:
                x[u] = project(x[u] - move)
            if not fixed[v]:
                x[v] = project(x[v] + move)


def project_onto_simplex(v):
    """The nearest point of {x >= 0, sum x = 1} to v, (labels,), at least one label.

    With v sorted in falling order, theta = (v_1 + .. + v_k - 1) / k for the largest k whose v_k
    stays above it; the rest becomes zero. Addition by addition as the native projection.
    """
    falling = np.sort(v)[::-1]
    counts = np.arange(1, len(v) + 1, dtype=v.dtype)
    thetas = (np.cumsum(falling, dtype=v.dtype) - v.dtype.type(1)) / counts
    # Once false it stays false, so the first failure ends the search.
    stays = falling > thetas
    k = len(v) if stays.all() else max(int(np.argmin(stays)), 1)
    nearest = np.maximum(v - thetas[k - 1], v.dtype.type(0))
    return nearest
