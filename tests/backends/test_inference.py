"""Logits, states and text of both backends, however tokens are read; refusals of batches."""

from functools import partial

import mlx.core as mx
import numpy as np
import psutil
import pytest

from mlxhog import backends
from mlxhog.backends.gpu_share import MLXCache
from mlxhog.data.batch import Batch
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.engine import answer
from mlxhog.decoding.options import Sampling
from mlxhog.errors import DataError
from mlxhog.models import lm_float64
from tests.backends.test_gradients import TABLES, text
from tests.backends.untrained import NAMES, bound
from tests.models.sample import LARGE, V1, batch, config, perturbed_params, v1_config
from tests.pairs import each_of
from tests.tolerances import LOGITS_F32, LOSS_F32, STATE_F32, assert_close

on_both = pytest.mark.parametrize("name", NAMES)
BACKENDS = [(name, kernels) for name in NAMES for kernels in ("native", "eager")]
on_every = pytest.mark.parametrize(("name", "kernels"), BACKENDS)
SMALL = LARGE | V1 | {
    "biases": partial(config, use_bias=True, out_norm_bias=True),
    "n-grams": partial(config, **TABLES), "v1, n-grams": partial(v1_config, **TABLES),
}  # fmt: skip
V = 257
DOCUMENTS = {"reset_at_document_boundaries": True, "bos_token_id": 0}
WIDE = {"vocab_size": 320}
MODELS = {
    "large": config(**WIDE),
    "large, resets": config(**WIDE, **DOCUMENTS | {"bos_token_id": 256}, tie_word_embeddings=True),
    "v1": v1_config(**WIDE),
}
TEXTS = [np.random.default_rng(2).integers(1, V, n) for n in (5, 1, 70, 16)]


@on_both
@each_of("kernels", ["eager", "auto"])
@each_of("model", SMALL)
def test_logits_and_states_are_those_of_float64_however_tokens_are_read_and_whoever_is_beside(
    name, kernels, model
):
    cfg = SMALL[model]()
    params, given = perturbed_params(cfg, seed=5), text(cfg, S=12)
    backend = bound(name, cfg, params, kernels)
    expected, after = lm_float64.logits(cfg, params, given.x)
    after = after[-len(cfg.layout.blocks) :]
    every, _ = backend.all_logits(given.x, None)
    assert_close(every, expected, LOGITS_F32)
    state = None
    for begin, end in ((0, 1), (1, 2), (2, 7), (7, 8), (8, 12)):
        last, state = backend.logits(given.x[:, begin:end], state)
        assert_close(last, expected[:, end - 1], LOGITS_F32)
    for block, of_block in zip(backend.state_arrays(state), after, strict=True):
        for part, exact in zip(block, of_block, strict=True):
            assert_close(part, exact, STATE_F32)
    states = [backend.logits(given.x[k : k + 1, :6], None)[1] for k in range(3)]
    together = backend.stack_states([backend.stack_states(states[:2]), states[2]])
    last, _ = backend.logits(given.x[[2, 0], 6:7], backend.select_state(together, [2, 0]))
    assert_close(last, expected[[2, 0], 6], LOGITS_F32)
    loaded = backends.create(name, threads=1, kernels=kernels)
    assert loaded.load(cfg, params) == []
    assert_close(loaded.evaluate(given).nats, backend.evaluate(given).nats, LOSS_F32)


@on_both
def test_a_batch_that_does_not_fit_is_refused_with_its_shape_or_the_place(name):
    backend = bound(name, config(), perturbed_params(config(), seed=0))
    x, y = batch(config(), 2, 6, seed=0)
    nothing = np.zeros((2, 0), np.int32)
    cases = [(nothing, nothing, r"tokens have shape \(2, 0\)")]
    for wrong in (-1, 23, 2**31 - 1):
        (bad := x.copy())[1, 4] = wrong
        where = f"{wrong} at position 4 of sequence 1 is outside the vocabulary of 23 ids"
        cases += [(bad, y, f"token {where}"), (x, bad, f"label {where}")]
    for tokens, labels, message in cases:
        for call in (backend.loss_and_grads, backend.evaluate):
            with pytest.raises(DataError, match=message):
                call(Batch(tokens, labels, n_bytes=0))
        if message.startswith("token"):
            with pytest.raises(DataError, match=message):
                backend.logits(tokens, None)


def test_mlx_keeps_the_freed_arrays_of_a_gradient_for_the_next(monkeypatch):
    cfg, limits = config(), []
    backend = bound("mlx:cpu", cfg, perturbed_params(cfg, seed=1))
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    backend._cache = MLXCache(mx, 0)
    for S in (16, 64, 16):
        backend.loss_and_grads(Batch(*batch(cfg, 4, S, seed=0), n_bytes=0))
    one, four_times = limits
    assert four_times > 2 * one
    assert one > 4 * 4 * 16 * cfg.vocab_size, "the logits alone"


def made(name, kernels, cfg):
    """A backend with parameters whose logits are well apart."""
    random, params = np.random.default_rng(1), perturbed_params(cfg, seed=0)
    wide = {n: x + random.normal(0, 0.2, x.shape).astype(np.float32) for n, x in params.items()}
    return bound(name, cfg, wide, kernels)


def greedy(backend, prompts, n, **how):
    sampling = Sampling(max_new_tokens=n, temperature=0.0)
    how = {"tokenizer": ByteTokenizer(), "sampling": sampling, "stop_ids": (), **how}
    answers = [[] for _ in prompts]
    for one in answer(backend, prompts, **how):
        answers[one.row].append(one.token)
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_are_the_same_on_every_backend_alone_and_in_a_batch_of_any_chunks(model):
    results = {}
    for name, kernels in BACKENDS:
        backend = made(name, kernels, MODELS[model])
        results[name, kernels, "together"] = greedy(backend, TEXTS, 24, batch_size=3)
        results[name, kernels, "alone"] = [greedy(backend, [text], 24)[0] for text in TEXTS]
        for chunk in (1, 7, 64):
            results[name, kernels, chunk] = greedy(backend, TEXTS, 24, prefill_chunk=chunk)
    first = results[*BACKENDS[0], "together"]
    assert len({tuple(tokens) for tokens in first}) == len(first)
    for key, tokens in results.items():
        assert tokens == first, key


@on_every
@pytest.mark.parametrize("model", ["large", "v1"])
def test_states_and_memory_do_not_grow_with_the_length(name, kernels, model):
    backend = made(name, kernels, MODELS[model])
    tokens = np.random.default_rng(3).integers(1, V, (1, 256)).astype(np.int32)
    _, state = backend.logits(tokens, None)
    sizes, memory = [], []  # not the peak, which may be another test's
    for _ in range(3):
        for t in range(400 if kernels == "native" else 40):
            _, state = backend.logits(tokens[:, t % 256][:, None], state)
        _, state = backend.logits(tokens, state)
        sizes.append(sum(int(part.nbytes) for block in state for part in block))
        memory.append(psutil.Process().memory_info().rss)
    assert len(set(sizes)) == 1
    assert memory[2] <= 1.02 * memory[0]  # a cache would need more with every token
