"""Ratings with the statistics of the Netflix prize's: who rates how much, and how they rate.

Films follow a shifted power law, users a log-normal one that is cut off at seven times its mean
(there are a tenth of the real users; the real cut is at 85 times). Grades are a matrix of low rank
plus noise, rounded to 1 .. 5. Law and constants: spec hogwild.md 3.2, fitted to the prize's
published counts (busiest film 232,944 of 100.2 million ratings, mean 5,655, median 561).
"""

from __future__ import annotations

import numpy as np

from mlxhog.classic.datasets import Ratings

USERS, ITEMS, DRAWS = 48_019, 17_770, 2_000_000
ITEM_SHIFT, ITEM_POWER = 373 / ITEMS, 1.9
USER_SIGMA, USER_CAP = 1.246, 7.0
MEAN_GRADE, SIGNAL, NOISE = 3.6, 0.86, 0.5
GRADES = (1.0, 5.0)


def netflix_like(
    draws: int = DRAWS,
    users: int | None = None,
    items: int | None = None,
    rank: int = 10,
    *,
    seed: int = 0,
) -> Ratings:
    """Draw ratings of `items` films by `users` people, each pair at most once.

    Args:
        draws: pairs drawn; those drawn again (5 % of the default size) are kept once.
        users: people; None: 48,019, fewer for fewer draws.
        items: films; None: 17,770, fewer for fewer draws.
        rank: of the matrix behind the grades.
        seed: equal seeds give equal ratings.

    Returns:
        Ratings sorted by user, then by film; grades are whole numbers from 1 to 5.
    """
    smaller = (draws / DRAWS) ** 0.75  # in between: few repeated pairs, and rows not too short
    users = max(2, round(USERS * smaller)) if users is None else users
    items = max(2, round(ITEMS * smaller)) if items is None else items
    rng = np.random.default_rng(seed)
    item_law = (np.arange(items) + ITEM_SHIFT * items) ** -ITEM_POWER
    user_law = np.exp(USER_SIGMA * rng.standard_normal(users))
    user_law = np.minimum(user_law, USER_CAP * user_law.mean())
    drawn_users = rng.choice(users, draws, p=user_law / user_law.sum())
    drawn_items = rng.choice(items, draws, p=item_law / item_law.sum())
    pairs = np.unique(drawn_users.astype(np.int64) * items + drawn_items)
    who, what = (pairs // items).astype(np.int32), (pairs % items).astype(np.int32)
    tastes = rng.standard_normal((users, rank), dtype=np.float32)
    traits = rng.standard_normal((items, rank), dtype=np.float32)
    signal = np.einsum("ij,ij->i", tastes[who], traits[what])
    noise = rng.standard_normal(len(pairs))
    grades = MEAN_GRADE + SIGNAL * signal / max(signal.std(), 1e-12) + NOISE * noise
    return Ratings(
        users=who,
        items=what,
        ratings=np.clip(np.round(grades), *GRADES).astype(np.float32),
        n_users=users,
        n_items=items,
        lowest=GRADES[0],
        highest=GRADES[1],
    )
