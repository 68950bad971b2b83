"""How workers of a synchronous round divide its work."""

import itertools

from mlxhog.arena import plan
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.optim import AdamW, Muon
from mlxhog.optim.soap import Soap
from mlxhog.strategies import division
from tests.pairs import each_of


@each_of("seconds", [(1.0,), (1.0, 1.0), (1.0, 4.1), (0.3, 1.0, 0.7), (5.0, 1.0)])
@each_of("total", [1, 4, 7])
def test_no_other_division_of_sequences_is_done_sooner(seconds, total):
    def end_s(counts):
        return max(count * each_s for count, each_s in zip(counts, seconds, strict=True))

    counts = tuple(division.sequences(total, seconds))
    every = itertools.product(range(total + 1), repeat=len(seconds))
    assert sum(counts) == total
    assert end_s(counts) == min(end_s(other) for other in every if sum(other) == total)


@each_of("model", ["tiny", "160m"])
@each_of(
    ("kind", "workers"),
    [(AdamW, 2), (AdamW, 8), (Muon, 2), (Muon, 4), (Muon, 8), (Soap, 2), (Soap, 4)],
)
def test_parameters_are_divided_by_what_their_steps_cost(model, workers, kind):
    architecture = load_architecture(model)
    hidden = families.hidden_matrices(architecture)
    optimizer = AdamW() if kind is AdamW else kind(hidden=hidden)
    slots = list(plan(families.param_spec(architecture), max_workers=1, n_tickets=1).slots.values())
    costs = [division.cost(slot, optimizer) for slot in slots]
    shares = division.parameters(costs, workers)
    assert sorted(index for share in shares for index in share) == list(range(len(slots)))
    loads = [sum(costs[index] for index in share) for share in shares]
    # one parameter has one worker: embedding and head of 160m are a quarter of it each
    most = max(sum(loads) / workers, *costs)
    assert max(loads) <= 1.05 * most


def test_an_orthogonalised_matrix_costs_more_than_its_numbers():
    architecture = load_architecture("tiny")
    slots = plan(families.param_spec(architecture), max_workers=1, n_tickets=1).slots
    name = min(families.hidden_matrices(architecture))
    muon = Muon(hidden=frozenset({name}))
    assert division.cost(slots[name], AdamW()) == slots[name].size
    assert division.cost(slots[name], muon) > 2 * slots[name].size
