"""Ratings and graphs from files: read as they are meant, or refused with the line in error."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic.loaders.pairs import load_graph, load_ratings, parse_rating_range
from mlxhog.classic.loaders.text import blocks
from mlxhog.errors import ConfigError, DataError
from tests.pairs import each_of


def written(folder: Path, text: str, name: str = "data.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


MOVIELENS_CSV = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n7,10,3,851868750\n1,10,4,9\n"
MOVIELENS_DAT = "1::31::2.5::1260759144\n7::10::3::851868750\n1::10::4::9\n"
NETFLIX = "31:\n1,2.5,2005-09-06\n10:\n7,3,2005-05-13\n1,4,2005-10-19\n"


@each_of(
    "text",
    [
        MOVIELENS_CSV,
        MOVIELENS_DAT,
        NETFLIX,
        NETFLIX.replace("\n", "\r\n"),
        "% KONECT\n1 31 2.5\n7 10 3\n\n1 10 4\n",
        "1\t31\t2.5\tx\n7\t10\t3\ty\n1\t10\t4\tz\n",
    ],
    ids=["MovieLens csv", "MovieLens dat", "prize", "prize, Windows", "spaces", "tabs"],
)
def test_ratings_of_every_form_are_the_same(tmp_path, text):
    ratings, test = load_ratings(written(tmp_path, text))
    assert test is None
    assert ratings.users.tolist() == [0, 1, 0]
    assert ratings.items.tolist() == [1, 0, 0]
    assert ratings.ratings.tolist() == [2.5, 3.0, 4.0]
    assert (ratings.n_users, ratings.n_items) == (2, 2)


@pytest.mark.parametrize("form", ["triplets", "prize"])
def test_ratings_of_many_blocks_are_the_same(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(0)
    movies = np.sort(rng.choice(50, 400))
    users, stars = rng.choice(90, 400), rng.integers(1, 6, 400)
    text = ""
    for movie in np.unique(movies):
        text += f"{movie}:\n" if form == "prize" else ""
        for at in np.flatnonzero(movies == movie):
            who, rating = users[at], stars[at]
            prize, triplet = f"{who},{rating},2005-09-06\n", f"{who} {movie} {rating}\n"
            text += prize if form == "prize" else triplet
    monkeypatch.setattr(blocks, "__defaults__", (200,))
    ratings, _ = load_ratings(written(tmp_path, text))
    assert ratings.ratings.tolist() == stars.tolist()
    assert np.unique(users)[ratings.users].tolist() == users.tolist()
    assert np.unique(movies)[ratings.items].tolist() == movies.tolist()


def test_a_training_and_a_test_file_name_users_and_items_alike(tmp_path):
    train, test = load_ratings(
        written(tmp_path, "5 1000000000000 1\n3 7 2\n", "a"), written(tmp_path, "9 7 3\n", "b")
    )
    assert test is not None
    assert (train.users.tolist(), test.users.tolist()) == ([1, 0], [2])
    assert (train.items.tolist(), test.items.tolist()) == ([1, 0], [0])
    assert (test.n_users, test.n_items) == (3, 2)


@each_of(
    ("text", "message"),
    [
        ("1 2 3\n1 3 6\n", r":2: rating 6; wanted 1 \.\. 5. .* --rating-range"),
        ("# a\n\n1 2 3\n1 3 0\n", ":4: rating 0;"),
        ("1 2 3\n1 2.5 3\n", ":2: item 2.5; wanted a whole number"),
        ("1 2 3\n-1 2 3\n", ":2: user -1; wanted a whole number"),
        ("1 2 3\n1 2\n", r":2: 2 column\(s\); wanted at least 3"),
        ("1 2 3\n1 2 3 4\n", ":2: 4 columns, but the lines before have 3"),
        ("1 2 3\n1 2 nan\n", ":2: 'nan'; wanted a finite number"),
        ("1 2 3\nbob 2 3\n", ":2: 'bob'; wanted a finite number"),
        ("1 2 3\n1 3 4", ":2: the last line has no line end"),
        ("user item rating\n", "has no ratings"),
        ("7:\n1,2,2005-01-01\n2,9,2005-01-01\n", ":3: rating 9"),
        ("7:\n1,2,2005-01-01\n8:\n2\n", ":4: 1 column"),
    ],
)
def test_a_malformed_rating_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_ratings(written(tmp_path, text))


def test_ratings_of_another_scale_are_read_when_it_is_said(tmp_path):
    path = written(tmp_path, "1 2 90\n1 3 0\n")
    assert load_ratings(path, lowest=0, highest=100)[0].ratings.tolist() == [90.0, 0.0]


def test_a_rating_out_of_range_in_a_later_block_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "__defaults__", (20,))
    text = "".join(f"{line} {line} 3\n" for line in range(1, 40)) + "7 7 0\n"
    with pytest.raises(DataError, match=":40: rating 0"):
        load_ratings(written(tmp_path, text))


@pytest.mark.parametrize("packed", [False, True])
def test_a_real_graph_is_read_as_it_is(tmp_path, packed):
    """Zachary's karate club, 34 members and 78 ties with weights, as networkx ships it."""
    import networkx  # while this runs, and not while tests are collected

    club = networkx.karate_club_graph()
    text = "# u v w\n" + "".join(f"{u + 5} {v + 5} {w}\n" for u, v, w in club.edges(data="weight"))
    path = tmp_path / ("club.txt.gz" if packed else "club.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    graph = load_graph(path, "5=0,38=1")
    assert (graph.n_vertices, graph.n_edges, graph.labels) == (34, 78, 2)
    assert graph.terminals == {0: 0, 33: 1}
    ends = zip(graph.heads.tolist(), graph.tails.tolist(), graph.weights.tolist(), strict=True)
    assert list(ends) == list(club.edges(data="weight"))


def test_edges_without_weights_weigh_1_and_terminals_may_be_a_file(tmp_path):
    terminals = written(tmp_path, "# who leads\n10 0\n30 2\n", "terminals.txt")
    graph = load_graph(written(tmp_path, "10,20\n20,30\n"), str(terminals))
    assert graph.weights.tolist() == [1.0, 1.0]
    assert (graph.terminals, graph.labels) == ({0: 0, 2: 2}, 3)


@each_of(
    ("text", "message"),
    [
        ("0 1 1\n1 1 1\n", ":2: an edge from a vertex to itself"),
        ("0 1 1\n1 2 -1\n", ":2: a weight below 0"),
        ("0 1 1\n1 2 inf\n", ":2: 'inf'; wanted a finite number"),
        ("0 1 1\n1 -2 1\n", ":2: vertex -2; wanted a whole number"),
        ("0 1 1\n1\n", r":2: 1 column\(s\); wanted at least 2"),
        ("# no edges\n", "has no edges"),
    ],
)
def test_a_malformed_edge_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_graph(written(tmp_path, text), "0=0,1=1")


@each_of(
    ("terminals", "message"),
    [
        ("0=0,7=1", "terminal 7 is not a vertex"),
        ("0=0,1=0", "has one label only"),
        ("0=0,1", "--terminals has '1'; wanted VERTEX=LABEL"),
        ("missing.txt", "--terminals has 'missing.txt'"),
    ],
)
def test_terminals_that_cannot_be_cut_apart_are_refused(tmp_path, terminals, message):
    with pytest.raises(ConfigError, match=message):
        load_graph(written(tmp_path, "0 1 1\n"), terminals)


def test_a_rating_range_is_two_numbers_by_a_comma():
    assert parse_rating_range("0.5,5") == (0.5, 5.0)
    for text in ("5", "5,1", "a,b", "1,5,9"):
        with pytest.raises(ConfigError, match="wanted LOW,HIGH"):
            parse_rating_range(text)
