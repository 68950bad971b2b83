"""The promises of every layer and of the example, with default and other numbers.

Both backends agree with the float64 reference and with each other, no output depends on a later
token, and a sequence in pieces, from any state, has the outputs of the whole.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mlxhog.config import plugins
from mlxhog.models import lm, lm_float64
from mlxhog.models.layers import BUILT_IN
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from tests.models.sample import batch, perturbed_params
from tests.models.twins import TWINS, assert_agreement
from tests.pairs import each_of
from tests.tolerances import CAUSAL_F32, FLOAT64, LOGITS_F32, STATE_F32, assert_close

OTHERS = (
    "mh-attention(h4,kv_heads=2,base=100,qk_norm=true,bias=false)",
    "mh-attention(h1,rope=false)",
    "mh-sliding-attention(h4,window=5)",
    "mh-sliding-attention(h2,window=0)",
    "linear-attention(h2,floor=0.5)",
    "gla(h2,rank=3)",
    "ssd(h2,expand=1,states=3,conv=1)",
    "path(h2,rank=3,conv=1,forget=true)",
    "gsa(h2,slots=3)",
    "mesa(h2,conv=1,steps=16)",
    "mamba3(h2,expand=1,states=5,rope_fraction=1)",
    "mamba(expand=1,states=2,conv=2,rank=5)",
    "gated-delta-net(h2,conv=1,decay=false)",
    "delta-net(h2,conv=1,negative=true)",
    "gated-delta-product(h2,householders=3,decay=false,negative=false)",
    "kda(h2,conv=2,rank=3,negative=true)",
    "rwkv7(h2,rank=3,gate_rank=5)",
    "hyena(expand=1,groups=1,kernel=2,filter_width=5)",
    "mh-hyena(h2,groups=1,kernel=1)",
    "mlstm(h2,conv=0)",
    "mlstm(h2,signed=true)",
    "slstm(h2,conv=3)",
    "slstm(h2,bias_init=powerlaw,recurrent_init=uniform)",
    "slstm-v1(h2,conv=0)",
    "canon(kernel=1)",
    "canon mlstm(h2) canon swiglu",
    "mlp(inner=24)",
    "moe-swiglu(experts=5,active=3,inner=4,router=mad)",
    "mlstm(conv=0) mh-attention swiglu gla",
)
LONG = (
    *("gla", "gsa", "ssd", "mlstm", "mamba", "mamba3", "mh-attention"),
    *("gated-delta-net", "delta-net(negative=true)", "gated-delta-product", "kda", "rwkv7"),
)
plugins.load(Path(__file__).parents[4] / "examples" / "my_layer.py")
SEQUENCES = (*(layer.name for layer in BUILT_IN), "my_layer(expand=2)", *OTHERS)
sequences = each_of("text", SEQUENCES)
twins = each_of("name", TWINS)
FRAMEWORKS = ("torch", "mlx")
RECORDED = json.loads((Path(__file__).parents[3] / "golden" / "layers_float64.json").read_text())


def in_turn(argument, values):
    """Each sequence with one of the values, which change the form and not the promise."""
    cases = [(text, values[k % len(values)]) for k, text in enumerate(SEQUENCES)]
    return each_of(("text", argument), cases)


def example(text, S, B=2, max_length=80):
    """A model, parameters without zeros, tokens and labels."""
    cfg = MADConfig(vocab_size=23, hidden_size=32, layers=parse(text), max_length=max_length)
    return cfg, perturbed_params(cfg, 1), *batch(cfg, B, S, 2)


@cache
def with_reference(text, S, B):
    """A model, parameters, tokens and the logits of the reference."""
    cfg, params, tokens, _ = example(text, S, B, max_length=S)
    return cfg, params, tokens, lm_float64.logits(cfg, params, tokens)[0]


@sequences
def test_the_reference_has_the_numbers_that_a_loop_over_positions_in_numpy_had(text):
    """Of each layer, written for it alone and by hand; it was deleted when they were equal."""
    logits = with_reference(text, 67, 2)[-1]
    recorded = np.reshape(RECORDED[text], (2, 2, 4))
    assert_close(logits[:, [9, 66], :4], recorded, FLOAT64)


@pytest.mark.slow
@twins
@each_of("text", LONG)
def test_a_thousand_positions_add_up_no_errors(text, name):
    cfg, params, tokens, expected = with_reference(text, 1024, 1)
    actual, _ = TWINS[name].logits(cfg, params, tokens)
    assert_close(actual, expected, LOGITS_F32)


@pytest.mark.slow
@sequences
def test_all_twins_agree_on_every_gradient(text):
    cfg, params, tokens, labels = example(text, 19)
    assert_agreement(cfg, params, tokens, labels)


@in_turn("name", tuple(TWINS))
def test_a_later_token_changes_no_earlier_output(text, name):
    cfg, params, tokens, _ = example(text, 40)
    before, _ = TWINS[name].logits(cfg, params, tokens)
    tokens[:, 21] = (tokens[:, 21] + 1) % cfg.vocab_size
    after, _ = TWINS[name].logits(cfg, params, tokens)
    assert_close(after[:, :21], before[:, :21], CAUSAL_F32)
    assert np.abs(after - before)[:, 21].max() > 1e-2


@pytest.mark.slow
@twins
@sequences
def test_a_twin_computes_what_the_reference_does_whole_and_in_pieces(text, name):
    cfg, params, tokens, expected = with_reference(text, 67, 2)
    actual, last = TWINS[name].logits(cfg, params, tokens)
    assert_close(actual, expected, LOGITS_F32)
    number = SEQUENCES.index(text) + list(TWINS).index(name)
    begins = ((1, 3, 61, 62), range(1, 9))[number % 2]
    results, state = [], TWINS[name].zero_state(cfg, len(tokens))
    for piece in np.split(tokens, begins, axis=1):
        logits, state = TWINS[name].logits(cfg, params, piece, state)
        results.append(logits)
    assert_close(np.concatenate(results, 1), expected, LOGITS_F32)
    for own, whole in zip(state, last, strict=True):
        for part, wanted_part in zip(own, whole, strict=True):
            assert_close(part, wanted_part, STATE_F32)


@pytest.mark.slow
@each_of("framework", FRAMEWORKS)
@sequences
def test_rows_of_any_lengths_go_on_together_as_each_would_alone(text, framework):
    cfg, params, tokens, _ = example(text, 48, B=4)
    side = TWINS[f"{framework}-eager"]
    lengths = (3, 40, 1, 12)
    states = []
    for row, length in enumerate(lengths):
        _, state = side.logits(cfg, params, tokens[row : row + 1, :length])
        states.append(side.array(state))
    xp = side.ops.xp
    together = lm.stack_states([lm.stack_states(states[:2], xp), *states[2:]], xp)
    order = [3, 0, 2, 1]
    together = lm.select_state(together, order, xp)
    rows_state = side.numpy(together)
    alone = [
        side.logits(cfg, params, tokens[row : row + 1, : length + 3])[0][0]
        for row, length in enumerate(lengths)
    ]
    for step in range(3):
        column = [[tokens[row, lengths[row] + step]] for row in order]
        actual, rows_state = side.logits(cfg, params, np.array(column), rows_state)
        for row, logits in zip(order, actual, strict=True):
            assert_close(logits[0], alone[row][lengths[row] + step], LOGITS_F32, label=f"row {row}")


@in_turn("framework", FRAMEWORKS)
def test_the_state_that_is_counted_is_the_state_that_is_kept(text, framework):
    for length in (1, 5, 70):
        cfg, params, tokens, _ = example(text, length, B=1)
        _, state = TWINS[f"{framework}-eager"].logits(cfg, params, tokens)
        for kept, counted in zip(state, cfg.state_sizes(length), strict=True):
            sizes = [part.size for part in kept if part.dtype == np.float32]
            assert sum(sizes) == sum(counted.values())
