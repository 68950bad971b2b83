"""Every backend generates the same text, and the recurrent state stays as small as it began."""

import resource

import numpy as np
import pytest

from mlxhog.decoding.generate import answer
from mlxhog.decoding.options import Sampling
from mlxhog.models.families import init_params
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import MLSTMBlockConfig, SLSTMBlockConfig, XLSTMV1Config
from tests.backends.untrained import Ids, bound
from tests.models.golden import model_case

BACKENDS = [
    (name, kernels) for name in ("torch:cpu", "mlx:cpu") for kernels in ("native", "reference")
]
on_every = pytest.mark.parametrize(("name", "kernels"), BACKENDS)

MODELS = {
    "large": XLSTMLargeConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_heads=2),
    "large, resets": XLSTMLargeConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=2,
        reset_at_document_boundaries=True,
        bos_token_id=0,
        tie_word_embeddings=True,
    ),
    "v1": XLSTMV1Config(
        vocab_size=96,
        embedding_dim=32,
        num_blocks=3,
        mlstm_block=MLSTMBlockConfig(),
        slstm_block=SLSTMBlockConfig(),
        slstm_at=(1,),
    ),
}


def params_of(cfg):
    """Parameters whose logits are well apart."""
    random = np.random.default_rng(1)
    return {
        name: value + random.normal(0, 0.2, value.shape).astype(np.float32)
        for name, value in init_params(cfg, seed=0).items()
    }


def greedy(backend, prompts, V, n, **how):
    """The greedy tokens after each prompt."""
    text = answer(
        backend,
        prompts,
        tokenizer=Ids(V),
        sampling=Sampling(max_new_tokens=n, temperature=0.0),
        stop_at_document_end=False,
        **how,
    )
    answers = [[] for _ in prompts]
    for one in text:
        assert one.token is not None
        answers[one.row].append(one.token)
    return answers


def prompts(V):
    random = np.random.default_rng(2)
    return [random.integers(1, V, n) for n in (5, 1, 70, 16)]


@on_every
@pytest.mark.parametrize("case", ["hf_d_generate", "large_a"])
def test_greedy_tokens_are_those_that_the_references_generated(name, kernels, case):
    recorded = model_case(case)
    prompt, ids = recorded.tensors["greedy_prompt"], recorded.tensors["greedy_ids"]
    if case.startswith("hf_"):  # transformers repeats the prompt, xlstm does not
        ids = ids[:, prompt.shape[1] :]
    backend = bound(name, recorded.cfg, recorded.params, kernels)
    for row in range(len(prompt)):
        pieces = answer(
            backend,
            [prompt[row]],
            tokenizer=Ids(recorded.cfg.vocab_size, bos=int(prompt[row, 0])),
            sampling=Sampling(max_new_tokens=ids.shape[1], temperature=0.0),
            stop_at_document_end=False,
        )
        assert [piece.token for piece in pieces] == ids[row].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_are_the_same_on_every_backend_alone_and_in_a_batch(model):
    cfg, result = MODELS[model], {}
    for name, kernels in BACKENDS:
        backend = bound(name, cfg, params_of(cfg), kernels)
        texts = prompts(cfg.vocab_size)
        result[name, kernels, "together"] = greedy(backend, texts, cfg.vocab_size, 24, batch_size=3)
        result[name, kernels, "alone"] = [
            greedy(backend, [text], cfg.vocab_size, 24)[0] for text in texts
        ]
    (first, *others) = result.values()
    assert len({tuple(tokens) for tokens in first}) == len(first)
    for key, tokens in result.items():
        assert tokens == first, key
    assert others


@on_every
@pytest.mark.parametrize("model", ["large", "v1"])
def test_the_length_of_prefill_chunks_changes_nothing(name, kernels, model):
    cfg = MODELS[model]
    backend = bound(name, cfg, params_of(cfg), kernels)
    texts = prompts(cfg.vocab_size)
    expected = greedy(backend, texts, cfg.vocab_size, 12)
    for chunk in (1, 7, 64):
        assert greedy(backend, texts, cfg.vocab_size, 12, prefill_chunk=chunk) == expected


def state_bytes(state):
    parts = [state] if isinstance(state, np.ndarray) else [p for block in state for p in block]
    return sum(int(part.nbytes) for part in parts)


@on_every
@pytest.mark.parametrize("model", ["large", "v1"])
def test_states_and_memory_do_not_grow_with_the_length(name, kernels, model):
    cfg = MODELS[model]
    backend = bound(name, cfg, params_of(cfg), kernels)
    tokens = np.random.default_rng(3).integers(1, cfg.vocab_size, (1, 256)).astype(np.int32)
    _, state = backend.logits(tokens, None)
    sizes, peaks = [], []
    for _ in range(3):
        for t in range(400 if kernels == "native" else 40):
            _, state = backend.logits(tokens[:, t % 256][:, None], state)
        _, state = backend.logits(tokens, state)
        sizes.append(state_bytes(state))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(set(sizes)) == 1
    assert peaks[2] <= 1.02 * peaks[0]  # a cache would need more with every token


@on_every
def test_states_of_a_batch_can_be_stacked_and_taken_apart(name, kernels):
    cfg = MODELS["v1"]
    backend = bound(name, cfg, params_of(cfg), kernels)
    texts = [text.astype(np.int32)[None] for text in prompts(cfg.vocab_size)]
    alone = [backend.logits(text, None)[1] for text in texts]
    together = backend.stack_states([backend.stack_states(alone[:2]), *alone[2:]])
    next_tokens = np.array([[1], [2], [3], [4]], np.int32)
    order = [2, 0]
    logits, _ = backend.logits(next_tokens[order], backend.take_state(together, order))
    for row, index in enumerate(order):
        expected, _ = backend.logits(next_tokens[index : index + 1], alone[index])
        np.testing.assert_allclose(logits[row], expected[0], atol=1e-5)
