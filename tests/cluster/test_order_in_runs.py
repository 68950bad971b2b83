"""Workers fetch the batches of their cluster, also if some are killed; without one, their own."""

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena, blocks, plan
from mlxhog.arena.blocks import OWN_EPOCHS, Blocks
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.process import monotonic_ns
from mlxhog.cluster import order
from mlxhog.cluster.claims import NEXT, Claims, Reserve
from mlxhog.cluster.order import Order
from mlxhog.config.budget import Budget
from mlxhog.data.batch import Batch
from mlxhog.strategies import Context, Lease
from mlxhog.strategies.context import TicketPart
from mlxhog.training import plan as plans
from mlxhog.training.gradients import Gradients
from tests.cluster.stores import MemoryStore
from tests.forked import CONTEXT
from tests.training.small import small_config
from tests.training.test_resume import state

N, SLOTS = 300, 3


def gradients_on(arena: Arena) -> Gradients:
    """Gradients of batches of two rows whose tokens are the epoch and the ticket."""

    def at(epoch: int, ticket: int) -> Batch:
        x = np.full((2, 4), (epoch % 1000) * 10_000 + ticket, np.int32)
        return Batch(x, x, n_bytes=8)

    data = SimpleNamespace(at=at, n_tickets=N)
    setup = SimpleNamespace(batches=lambda: data)
    job: Any = SimpleNamespace(
        micro_batch=8, slot=1, setup=setup, config=SimpleNamespace(slow=None)
    )
    entry: Any = SimpleNamespace(beat=lambda: None)
    backend: Any = SimpleNamespace()
    return Gradients(job, arena, entry, backend)


def test_a_worker_without_a_cluster_fetches_the_batch_of_its_own_ticket() -> None:
    with Arena.create(plan({}, max_workers=SLOTS, n_tickets=N)) as arena:
        (batch,) = gradients_on(arena).micro_batches(Lease(3, 7))
        assert batch.x[0, 0] == 30_007


def test_a_worker_of_a_cluster_fetches_the_batch_of_its_block(tmp_path) -> None:
    layout = plan({}, max_workers=SLOTS, n_tickets=N, extra=blocks.segment(N))
    store = MemoryStore()
    Reserve(store, tmp_path / "order.json")
    Claims(store).claim(5)
    with Arena.create(layout) as arena:
        ledger = Ledger(arena)
        order.begin(arena, ledger, None, keep=False)
        Order(arena, ledger, Claims(store)).refill()
        gradients = gradients_on(arena)
        (batch,) = gradients.micro_batches(Lease(0, 0))
        assert batch.x[0, 0] == 5
        parts = (TicketPart(0, 1, 0, 1), TicketPart(0, 0, 1, 2))
        (batch,) = gradients.micro_batches(Lease(0, 0, parts))
        assert batch.x[:, 0].tolist() == [6, 5]


def test_tokens_of_other_machines_move_the_schedule_and_end_the_budget() -> None:
    with Arena.create(plan({}, max_workers=SLOTS, n_tickets=N)) as arena:
        arena.counters.store("tokens", 100)
        blank = dict.fromkeys(Context.__dataclass_fields__)
        entry = SimpleNamespace(step_s=0.0)
        budget = Budget(tokens=1000)
        context = Context(**{**blank, "arena": arena, "budget": budget, "entry": entry})  # type: ignore[arg-type]
        assert context.progress() == 0.1
        arena.counters.store("tokens_elsewhere", 400)
        assert context.progress() == 0.5
        assert not context.used_up()
        arena.counters.store("tokens_elsewhere", 900)
        assert context.used_up()
        arena.counters.store("start_ns", monotonic_ns())
        arena.counters.store("ms_elsewhere", 10**9)
        context.budget = Budget(seconds=1e6)
        assert context.progress() == pytest.approx(0.5)  # a joiner continues the schedule


def test_a_run_counts_its_own_blocks_over_a_resume_and_learns_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out = plans.laid_out

    def with_blocks(ways, memory, max_workers, spec, tables, **options):
        tables = {**tables, **blocks.segment(ways[0].n_tickets)}
        return laid_out(ways, memory, max_workers, spec, tables, **options)

    monkeypatch.setattr(plans, "laid_out", with_blocks)
    config = partial(
        small_config, tmp_path, strategy="serial", workers="mlx:cpu", steps=30, eval_every="1h"
    )
    first = train(config())
    position = state(first)["blocks"]
    length = position["length"]
    assert position["own"] == position["first"] == 30 // length
    second = train(config(resume=first.run))
    position = state(second)["blocks"]
    assert position["own"] == position["first"] == 60 // length
    assert second.val_bits_per_byte is not None
    assert first.val_bits_per_byte is not None
    assert second.val_bits_per_byte < first.val_bits_per_byte


def work(handle, owner, batches, seed):
    """Take tickets, fetch their batches and mark each, until enough are handed out."""
    rng = random.Random(seed * 1000 + owner)
    arena = Arena.from_handle(handle)
    ledger = Ledger(arena)
    table, hits, own = Blocks(arena, ledger), arena.segment("hits"), arena.segment("own")
    while (ticket := ledger.claim(owner, batches)) is not None or ledger.watermark < batches:
        if ticket is None:
            continue
        epoch, number = table.at(*ticket)
        for _ in range(rng.randrange(20_000)):
            pass
        assert ledger.begin_apply(*ticket, owner)
        if epoch < OWN_EPOCHS:
            hits[epoch * N + number] += 1
        else:
            own[owner] += 1
        assert ledger.finish(*ticket, owner)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_workers_and_links_train_no_batch_of_the_cluster_twice(seed, tmp_path) -> None:
    batches, kills = 3000, 6
    room = {"hits": ("uint8", 20 * batches), "own": ("uint32", 100)}
    layout = plan({}, max_workers=SLOTS, n_tickets=N, extra={**blocks.segment(N), **room})
    rng, store = random.Random(seed), MemoryStore()
    reserve = Reserve(store, tmp_path / "order.json")
    with Arena.create(layout) as arena:
        ledger = Ledger(arena)
        order.begin(arena, ledger, None, keep=False)

        def start(slot):
            owner = arena.workers.acquire_slot(slot=slot).incarnation
            args = (arena.handle(), owner, batches, seed)
            process = CONTEXT.Process(target=work, args=args, daemon=True)
            process.start()
            return process, owner

        processes = {slot: start(slot) for slot in range(1, SLOTS + 1)}
        moments = sorted(rng.sample(range(batches // 2), kills))
        link, torn = Order(arena, ledger, Claims(store)), 0
        try:
            while ledger.watermark < batches:
                link.refill()
                reserve.keep()
                ledger.sweep_orphans()
                if moments and ledger.watermark >= moments[0]:
                    del moments[0]
                    Claims(store).claim(1)  # a link that was killed before it mapped this
                    link = Order(arena, ledger, Claims(store))
                    slot = rng.randint(1, SLOTS)
                    process, owner = processes[slot]
                    process.kill()
                    process.join()
                    torn += ledger.reap(owner).torn
                    arena.workers.release(slot)
                    processes[slot] = start(slot)
        finally:
            for process, _ in processes.values():
                process.kill() if ledger.watermark < batches else process.join(30)
        hits, own = arena.segment("hits"), arena.segment("own")
        killed = kills - len(moments)  # workers may end before the last
        assert killed
        assert hits.max() == 1
        done = int(hits.sum()) + int(own.sum())
        assert batches - torn <= done <= batches
        mapped = Blocks(arena, ledger).counts.mapped
        assert store.add(NEXT, 0) == mapped + killed  # a block each is lost
