"""A real graph from a file is cut where its maximum flow says."""

import networkx
import pytest

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems import create
from mlxhog.classic.session import train


@pytest.mark.parametrize("workers", [1, 2])
def test_the_karate_club_is_cut_at_its_maximum_flow(tmp_path, workers):
    """Zachary's club split between instructor (0) and officer (33), as networkx ships it."""
    club = networkx.karate_club_graph()
    path = tmp_path / "club.txt"
    path.write_text("".join(f"{u} {v} {w}\n" for u, v, w in club.edges(data="weight")))
    flow, _ = networkx.minimum_cut(club, 0, 33, capacity="weight")
    config = ClassicConfig(data=str(path), terminals="0=0,33=1", workers=workers)
    result = train(create("graph-cuts", config), config)
    assert result.measures["cut"] == flow
