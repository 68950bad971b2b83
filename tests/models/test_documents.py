"""Documents in one sequence, in every form: one that starts is computed as alone, to the bit.

Nothing of the documents before it reaches its results and gradients, and nothing of its loss goes
back to them, whatever the gates are.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest

from mlxhog.models import lm_native
from mlxhog.models.families import reset_token
from tests import tolerances as near
from tests.models.golden import MLSTM, MLSTM_STATE
from tests.models.operators import METAL, draw, mlstm, recurrence, run_mlstm
from tests.models.sample import cell_inputs, config, perturbed_params, v1_config
from tests.models.twins import EXACT, TWINS
from tests.pairs import each_of, in_pairs
from tests.tolerances import assert_close

FORMS = TWINS | METAL | {"float64": EXACT}
S, CHUNK = 13, 4
STATE = (1, 1, 3, 5), (1, 1, 3), (1, 1)  # shapes of C, n and m
STARTS = {
    "at the first position": (0,),
    "at the first of a chunk": (8,),
    "one before it": (7,),
    "one after it": (9,),
    "twice in a chunk": (5, 7),
    "at every position of a chunk": (4, 5, 6, 7),
    "in every chunk": (2, 6, 9),
    "at the last position": (12,),
}
GATES = {  # i of the old documents, and of the new one
    "drawn": (0.0, 0.0),
    "at the ends of a cap": (14.0, -12.0),
    "the other way round": (-12.0, 14.0),
    "without a cap": (80.0, -80.0),
    "shut": (80.0, -np.inf),
}
form = pytest.mark.parametrize(
    "form",
    [
        pytest.param(twin, id=name, marks=[pytest.mark.slow] if name in METAL else [])
        for name, twin in FORMS.items()
    ],
)


@dataclass
class Packed:
    """Documents of a row and a head, of which the last begins at `new`."""

    places: tuple[int, ...]
    inputs: dict = field(default_factory=dict)

    @property
    def new(self):
        return self.places[-1]

    def fixed(self):
        reset_mask = np.zeros((1, S), bool)
        reset_mask[:, self.places] = True
        return {"chunk_size": CHUNK, "eps": 1e-3, "reset_mask": reset_mask}

    def run(self, twin):
        """h, C, n and m, and the gradients of the new document's and the last state's loss."""
        weights = [draw(*shape, seed=7) for shape in ((1, S, 1, 5), *STATE)]
        weights[0][:, : self.new] = 0
        return twin.run(run_mlstm, self.inputs, self.fixed(), weights)

    def alone(self, twin):
        inputs = {name: self.inputs[name][:, self.new :] for name in MLSTM}
        weights = [draw(1, S, 1, 5, seed=7)[:, self.new :]]
        weights += [draw(*shape, seed=7) for shape in STATE]
        return twin.run(run_mlstm, inputs, {"chunk_size": CHUNK, "eps": 1e-3}, weights)

    def after(self, seed, i, size=1.0):
        """The same new document after other old ones."""
        old, inputs = cell_inputs(1, S, 1, 3, 5, seed=seed), {}
        for name in MLSTM:
            x = size * old[name] if name in "qkv" else old[name] + (i if name == "i" else 0)
            inputs[name] = np.concatenate([x[:, : self.new], self.inputs[name][:, self.new :]], 1)
        state = [size * draw(*shape, seed=seed) for shape in STATE]
        return Packed(self.places, inputs | dict(zip(MLSTM_STATE, state, strict=True)))


def documents(places, i_old, i_new):
    x = cell_inputs(1, S, 1, 3, 5, seed=1)
    x["i"] += np.float32(i_new)
    return Packed(places, x).after(2, i_old)


@in_pairs(places=STARTS, gates=GATES)
@form
def test_a_document_is_computed_as_alone_and_sends_nothing_back(form, places, gates):
    packed = documents(places, *gates)
    (h, *state), grads = packed.run(form)
    (h_alone, *state_alone), grads_alone = packed.alone(form)
    new = packed.new
    for y, expected in zip((h[:, new:], *state), (h_alone, *state_alone), strict=True):
        assert_close(y, expected, near.CELL_EXTREME_F32)
    for name in MLSTM:
        assert_close(grads[name][:, new:], grads_alone[name], near.GRADIENT_ANY_F32, label=name)
        assert not grads[name][:, :new].any(), name
    assert not any(grads[name].any() for name in MLSTM_STATE)


@in_pairs(places=STARTS, gates=GATES)
@form
def test_what_was_before_a_document_changes_no_bit_of_it(form, places, gates):
    i_old, i_new = gates
    packed = documents(places, i_old, i_new)
    (h, *state), grads = packed.run(form)
    for other in (packed.after(3, -i_old), packed.after(4, i_old, size=np.float32(1e12))):
        (h_other, *state_other), grads_other = other.run(form)
        for y, expected in zip((h_other, *state_other), (h, *state), strict=True):
            part = slice(packed.new if y is h_other else 0, None)
            np.testing.assert_array_equal(y[:, part], expected[:, part])
        for name in MLSTM:
            part = slice(packed.new, None)
            np.testing.assert_array_equal(grads_other[name][:, part], grads[name][:, part])
            assert not grads_other[name][:, : packed.new].any(), name


@each_of("places", STARTS.values(), ids=STARTS)
@form
def test_every_document_of_a_sequence_counts(form, places):
    packed = documents(places, 2.0, -2.0)
    results, grads = form.run(run_mlstm, packed.inputs, packed.fixed())
    expected, exact = EXACT.run(run_mlstm, packed.inputs, packed.fixed())
    for y, one in zip(results, expected, strict=True):
        assert_close(y, one, near.CELL_EXTREME_F32)
    for name, grad in exact.items():
        assert_close(grads[name], grad, near.GRADIENT_ANY_F32, label=name)


@form
def test_a_document_that_starts_with_a_step_has_the_state_of_a_first_step(form):
    x = cell_inputs(1, 1, 1, 3, 5, seed=3)
    x["i"] -= np.float32(80)
    state = (1e30 * draw(*STATE[0]), draw(*STATE[1]), 80 + draw(*STATE[2]))
    old = dict(zip(MLSTM_STATE, state, strict=True)) | {"reset_mask": np.ones((1, 1), np.uint8)}
    how = {"chunk_size": CHUNK, "eps": 1e-6}
    first, again = (form.results(run_mlstm, inputs, how) for inputs in (x, x | old))
    for y, expected in zip(again, first, strict=True):
        np.testing.assert_array_equal(y, expected)


BOS = 3
RESET = {"reset_at_document_boundaries": True, "bos_token_id": BOS, "tie_word_embeddings": False}
MODELS = {"large": lambda: config(**RESET), "v1": lambda: v1_config(**RESET, slstm_at=[1])}


def model(name):
    """A model whose input gates go from one end of the cap to the other, or to +-80."""
    cfg = MODELS[name]()
    params = perturbed_params(cfg, seed=2)
    for key, value in params.items():
        if "igate" in key and key.endswith("weight") and "slstm" not in key and value.ndim == 2:
            value *= np.float32(80 / np.abs(value).max())
    assert reset_token(cfg) == BOS
    return cfg, params


def texts(new):
    """Two rows of old tokens, below 12, then of a document of other ones."""
    rng = np.random.default_rng(new)
    old, rest = rng.integers(4, 12, (2, 2, new)), rng.integers(12, 23, (2, 11 - new))
    rest[:, 0] = BOS
    both = (np.concatenate([one, rest], 1).astype(np.int32) for one in old)
    return *both, rest.astype(np.int32)


@each_of("new", [1, 4, 5, 10])
@pytest.mark.parametrize("name", MODELS)
@form
def test_a_model_reads_a_document_as_alone(form, name, new):
    (cfg, params), (tokens, others, alone) = model(name), texts(new)
    logits, state = form.logits(cfg, params, tokens)
    expected, last = form.logits(cfg, params, alone)
    assert_close(logits[:, new:], expected, near.LOGITS_F32)
    after, _ = form.logits(cfg, params, others)
    np.testing.assert_array_equal(after[:, new:], logits[:, new:])
    labels = np.where(np.arange(11) < new, -100, np.roll(tokens, -1, 1)).astype(np.int32)
    _, grads = form.loss_and_grads(cfg, params, tokens, labels)
    (embedding,) = (grad for key, grad in grads.items() if "embedding" in key)
    assert not embedding[4:12].any(), "the old tokens, which occur nowhere else"


@each_of("name", MODELS)
def test_a_decoder_reads_a_document_from_the_state_of_the_start(name):
    (cfg, params), (tokens, *_) = model(name), texts(5)
    decoder = lm_native.decoder(cfg, params, framework="torch", kernels="native", threads=1)
    state = None
    for token in tokens[:, :5].T:
        _, state = decoder.step(np.ascontiguousarray(token), state)
    state[0][0][0] *= np.float32(1e20)
    bos = np.full(2, BOS, np.int32)
    logits, (packed,) = decoder.step(bos, state)
    fresh, (first,) = decoder.step(bos, None)
    np.testing.assert_array_equal(logits, fresh)
    np.testing.assert_array_equal(packed[0], first[0])


@each_of("shut", [slice(4, 8), slice(0, None)], ids=["a chunk", "all"])
@form
def test_input_gates_of_minus_infinity_write_nothing(form, shut):
    case = mlstm(11, state=False)
    case.inputs["i"][:, shut] = -np.inf
    results, grads = form.run(case, case.inputs, case.fixed)
    for x in (*results, *grads.values()):
        assert np.isfinite(x).all()
    if shut.start == 0:
        assert not any(x.any() for x in results[:3])
    expected, _ = EXACT.run(case, case.inputs, case.fixed)
    assert_close(results[0], expected[0], near.CELL_EXTREME_F32)


@form
def test_an_array_may_be_given_in_two_places(form):
    case = recurrence(2, 9, 2, 4, 4, transpose_state=True, chunk=4)
    case.inputs["q"] = case.inputs["v"]

    def call(ops, x):
        return ops.recurrence(**{**x, "q": x["v"], **case.fixed})

    inputs = {name: x for name, x in case.inputs.items() if name != "q"}
    for y, expected in zip(form.results(call, inputs), EXACT.results(call, inputs), strict=True):
        assert_close(y, expected, near.SEQUENCE_F32)
