"""A small network on scikit-learn's digits, trained by the strategies of `mlxhog train`.

The 1,797 images of 8 x 8 pixels stand for the documents' MNIST: a quarter is held out, the rest is
divided among clients, the images of each class by a draw from a Dirichlet distribution. The network
is the documents' own with 64 inputs (256 and 128 rectified units, 10 classes), its gradient is
NumPy's. Strategies, meetings and memory are the product's, each client a worker in a thread of this
process, so runs repeat bit for bit wherever the strategy does. Nothing here says how fast it is.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial

import harness.machine  # noqa: F401  # which finds `tests`
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from mlxhog import TrainConfig
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import Ledger
from mlxhog.arena.workers import WorkerPhase
from mlxhog.config.budget import Budget
from mlxhog.config.components import STRATEGIES
from mlxhog.models.spec import ParamSpec
from mlxhog.strategies import BatchSize, Idle, Lease, build
from mlxhog.strategies.averaging import Averaged
from tests.strategies.runs import empty_arena, worker
from tests.threads import in_threads

WIDTHS = (64, 256, 128, 10)
BATCH, CLASSES = 32, 10
SIZE = BatchSize(sequences=BATCH, tokens=BATCH, labels=BATCH)
ROUND_LIMIT_S = 600.0

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """Pixels, scaled to 0..1, and the digit that each image shows."""

    pixels: Array
    digits: NDArray[np.int64]

    def of(self, rows):
        """Some of them."""
        return Images(self.pixels[rows], self.digits[rows])


@cache
def digits():
    """The images to train on, and those held out."""
    from sklearn.datasets import load_digits

    pixels, shown = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(shown))
    images = Images((pixels / 16.0).astype(np.float32), shown.astype(np.int64))
    validation = len(shown) // 4
    return images.of(order[validation:]), images.of(order[:validation])


def divided(images, clients, alpha, seed):
    """The images of each client; a draw that leaves one with less than a batch is not taken."""
    rng = np.random.default_rng([seed, 7])
    for _ in range(1000):
        rows = [[] for _ in range(clients)]
        for digit in range(CLASSES):
            own = rng.permutation(np.flatnonzero(images.digits == digit))
            shares = rng.dirichlet([alpha] * clients)
            cuts = np.round(np.cumsum(shares)[:-1] * len(own)).astype(int)
            for client, part in enumerate(np.split(own, cuts)):
                rows[client].append(part)
        found = [np.concatenate(parts) for parts in rows]
        if min(map(len, found)) >= BATCH:
            return [images.of(part) for part in found]
    raise SystemExit(f"no division of {clients} clients at alpha {alpha:g} gives each {BATCH}")


# -- the network -----------------------------------------------------------------------------------


def shapes():
    """Of its parameters."""
    layers = zip(WIDTHS, WIDTHS[1:], strict=False)
    return {
        name: shape
        for k, (fan_in, fan_out) in enumerate(layers)
        for name, shape in ((f"w{k}", (fan_in, fan_out)), (f"b{k}", (fan_out,)))
    }


def initial(seed):
    """Parameters as `torch.nn.Linear` draws them."""
    rng, drawn = np.random.default_rng([seed, 11]), {}
    for name, shape in shapes().items():
        bound = WIDTHS[int(name[1:])] ** -0.5
        drawn[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return drawn


def activations(params, pixels):
    """What every layer gets, and the scores of the last one."""
    hidden = [pixels]
    for k in range(len(WIDTHS) - 1):
        scores = hidden[-1] @ params[f"w{k}"] + params[f"b{k}"]
        hidden.append(np.maximum(scores, 0) if k < len(WIDTHS) - 2 else scores)
    return hidden


def gradient(params, batch):
    """Of the mean cross-entropy of a batch."""
    *hidden, scores = activations(params, batch.pixels)
    back = softmax(scores, axis=1)
    back[np.arange(len(batch.digits)), batch.digits] -= 1
    back /= np.float32(len(batch.digits))
    grads = {}
    for k in reversed(range(len(WIDTHS) - 1)):
        grads[f"w{k}"], grads[f"b{k}"] = hidden[k].T @ back, back.sum(axis=0)
        if k:
            back = (back @ params[f"w{k}"].T) * (hidden[k] > 0)
    return grads


def accuracy(params, images):
    """Share of the images whose digit gets the highest score."""
    scores = activations(params, images.pixels)[-1]
    return float((scores.argmax(axis=1) == images.digits).mean())


# -- training --------------------------------------------------------------------------------------


@dataclass
class Course:
    """What a training came to.

    Attributes:
        accuracy: on validation images, after every round.
        gradients: of all clients, likewise.
        network_bytes: that clients on machines of their own would have sent, likewise.
    """

    accuracy: list[float] = field(default_factory=list)
    gradients: list[int] = field(default_factory=list)
    network_bytes: list[int] = field(default_factory=list)

    def first_at(self, wanted):
        """The number of rounds to an accuracy, or None."""
        return next((k + 1 for k, got in enumerate(self.accuracy) if got >= wanted), None)


def train(clients, *, rounds, seed, until=None, **options):
    """Train by a strategy; a round is `average_every` steps of each client, or one.

    Args:
        clients: the images of each.
        rounds: at most so many.
        seed: of parameters and batches.
        until: an accuracy at which to end.
        options: of `TrainConfig`, `strategy` among them.
    """
    name, _ = STRATEGIES.parts(options["strategy"])
    foreign = {
        flat
        for flat, number in STRATEGIES.hyperparameters().items()
        if STRATEGIES.find(name) not in number.owners
    }
    plain = {option: value for option, value in PLAIN.items() if option not in foreign}
    config = TrainConfig(**{**plain, **options})
    chosen = config.strategy
    validation, course = digits()[1], Course()
    per_round = len(clients) * (chosen.local_steps if isinstance(chosen, Averaged) else 1)
    strategy = build(config, len(clients))
    with _opened(strategy, config.top_lr, seed, rounds * per_round) as (arena, workers):
        ledger, failed = Ledger(arena), []
        batches = [_batches(images, seed, rank) for rank, images in enumerate(clients)]
        for round_number in range(1, rounds + 1):
            # a step of `sync` is one of all workers together
            steps = round_number if chosen.averages else round_number * per_round
            for worker in workers:
                worker.context.step_limit = steps
                worker.context.budget = Budget(steps=steps)
            in_threads(partial(_steps, failed), zip(workers, batches, strict=True), ROUND_LIMIT_S)
            if failed:
                raise failed[0]
            strategy.settle(arena, ledger)
            course.accuracy.append(accuracy(_params(arena, arena.params), validation))
            course.gradients.append(round_number * per_round)
            course.network_bytes.append(strategy.network_bytes(arena, steps))
            if until is not None and course.accuracy[-1] >= until:
                break
    return course


PLAIN = {
    "optimizer": "sgd", "schedule": "constant", "warmup": 0.0, "clip": 0.0,
    "weight_decay": 0.0, "predict": "none", "sync_shares": "equal",
}  # fmt: skip
"""The documents' plain SGD."""


def _batches(images, seed, rank):
    rng = np.random.default_rng([seed, 13, rank])
    while True:
        order = rng.permutation(len(images.digits))
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            yield images.of(order[begin : begin + BATCH])


@contextmanager
def _opened(strategy, lr, seed, steps):
    """An arena with the network and workers for it."""
    parameters = {name: ParamSpec(name, shape, "zeros") for name, shape in shapes().items()}
    with empty_arena(strategy, parameters, private=(), n_tickets=steps) as arena:
        for name, drawn in initial(seed).items():
            _params(arena, arena.params)[name][...] = drawn
        strategy.begin(arena)
        arena.counters.store("command", ControlCommand.TRAIN)
        how = {"steps": 1, "schedule": lambda progress, update: lr}
        yield arena, [worker(arena, k + 1, strategy, **how) for k in range(strategy.workers)]


def _params(arena, flat):
    slots = arena.layout.slots
    return {
        name: flat[slots[name].offset : slots[name].offset + slots[name].size].reshape(shape)
        for name, shape in shapes().items()
    }


def _steps(failed, own):
    """A worker's steps up to the limit; what it raised is added to `failed`."""
    (worker, batches), context = own, own[0].context
    context.entry.phase = WorkerPhase.DATA
    try:
        while not failed:
            lease = worker.claim()
            if isinstance(lease, Lease):
                worker.read()
                params = _params(context.arena, context.backend.param_buffer)
                worker.write(gradient(params, next(batches)), lease, SIZE)
            elif (
                lease is Idle.DONE
                and context.strategy.steps_done(context.arena, context.ledger) >= context.step_limit
            ):
                return
            else:
                time.sleep(2e-5)
    except BaseException as error:  # the others would wait for this one for ever
        failed.append(error)
