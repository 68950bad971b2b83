"""What the modules of both frameworks promise: state, padding, order, dropout, bad input."""

import numpy as np
import pytest

from mlxhog.errors import ConfigError, ShapeError
from tests.models.operators import draw
from tests.nn.sides import KINDS, SIDES
from tests.pairs import each_of
from tests.tolerances import GRADIENT_ANY_F32, LOGITS_F32, STATE_F32, assert_close

sides = pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
both = pytest.mark.parametrize("side", [SIDES["torch"], SIDES["mlx"]], ids=["torch", "mlx"])
kinds = pytest.mark.parametrize("kind", KINDS)
LENGTHS = np.array([9, 4, 0, 1, 7])
B, S = len(LENGTHS), 9


def width(kind):
    return KINDS[kind][1][0]


def assert_state_close(actual, expected):
    for layer, (own, other) in enumerate(zip(actual, expected, strict=True)):
        for part, (x, y) in enumerate(zip(own, other, strict=True)):
            assert_close(x, y, STATE_F32, label=f"layer {layer}, part {part}")


def row(state, k):
    return tuple(tuple(part[k : k + 1] for part in layer) for layer in state)


@sides
@kinds
def test_a_sequence_in_pieces_gives_what_it_gives_whole(side, kind):
    layer, x = side.kind(kind), draw(3, S, width(kind))
    whole, last = side.run(layer, x)
    state, pieces = None, []
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        y, state = side.run(layer, x[:, begin:end], state)
        pieces.append(y)
    assert_close(np.concatenate(pieces, 1), whole, LOGITS_F32)
    assert_state_close(state, last)


@sides
@kinds
def test_padding_changes_neither_output_nor_state_whatever_stands_in_it(side, kind):
    layer, x = side.kind(kind), draw(B, S, width(kind))
    _, before = side.run(layer, draw(B, 5, width(kind), seed=1))
    x[np.arange(S) >= LENGTHS[:, None]] = np.nan
    for first in (None, before):
        y, last = side.run(layer, x, first, lengths=LENGTHS)
        assert not y[np.arange(S) >= LENGTHS[:, None]].any()
        for k, length in enumerate(LENGTHS):
            own = None if first is None else row(first, k)
            if length:
                alone, end = side.run(layer, x[k : k + 1, :length], own)
                assert_close(y[k, :length], alone[0], LOGITS_F32, label=f"row {k}")
                assert_state_close(row(last, k), end)
            elif own is not None:
                assert_state_close(row(last, k), own)
            else:
                assert not any(part.any() for layer in row(last, k) for part in layer)


@both
@kinds
def test_gradients_of_padded_rows_are_those_of_each_row_alone(side, kind):
    layer, x, dy = side.kind(kind), draw(B, S, width(kind)), draw(B, S, 16, seed=1)
    _, last = side.run(layer, x)
    dlast = tuple(tuple(draw(*part.shape, seed=2) for part in layer) for layer in last)
    actual = side.grads(layer, x, dy, dlast=dlast, lengths=LENGTHS)
    expected = {name: np.zeros_like(grad) for name, grad in actual.items()}
    for k, length in enumerate(LENGTHS):
        if length:
            rows = slice(k, k + 1), slice(0, length)
            alone = side.grads(layer, x[rows], dy[rows], dlast=row(dlast, k))
            expected["input"][rows] = alone.pop("input")
            for name, grad in alone.items():
                expected[name] += grad
    for name, grad in expected.items():
        assert_close(actual[name], grad, GRADIENT_ANY_F32, label=name)


@both
def test_a_mask_may_leave_out_any_place(side):
    kind = "slstm-block" if side.framework == "torch" else "mlstms-projected"
    layer, x = side.kind(kind), draw(3, S, width(kind))
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1, 1, 0, 0], [1] * 9]) == 1
    y, last = side.run(layer, np.where(mask[..., None], x, np.nan), mask=mask)
    assert not y[~mask].any()
    for k in range(3):
        alone, end = side.run(layer, x[k : k + 1, mask[k]])
        assert_close(y[k, mask[k]], alone[0], LOGITS_F32)
        assert_state_close(row(last, k), end)
    as_numbers, _ = side.run(layer, x, mask=mask.astype(np.int64))
    np.testing.assert_array_equal(as_numbers, y)


@both
def test_layers_after_one_another_are_each_the_input_of_the_next(side):
    stack, x = side.kind("mlstms-projected"), draw(3, S, 6)
    weights = side.parameters(stack)
    single = side.kind("mlstm")
    y = x @ weights["input_proj.weight"].T + weights["input_proj.bias"]
    states = []
    for k in range(2):
        prefix = f"layers.{k}."
        own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        side.load(single, own)
        y, (state,) = side.run(single, y)
        states.append(state)
    actual, last = side.run(stack, x)
    assert_close(actual, y, LOGITS_F32)
    assert_state_close(last, states)


@both
def test_one_sequence_has_no_axis_of_rows_and_time_may_come_first(side):
    layer, x = side.kind("mlstms-projected"), draw(1, S, 6)
    whole, last = side.run(layer, x)
    first, state = side.run(layer, x[0, :4])
    second, end = side.run(layer, x[0, 4:], state)
    assert_close(np.concatenate([first, second]), whole[0], LOGITS_F32)
    assert_state_close(end, [[part[0] for part in parts] for parts in last])
    times, x = side.kind("mlstms-projected", batch_first=False), draw(B, S, 6)
    y, last = side.run(layer, x, lengths=LENGTHS)
    actual, end = side.run(times, np.ascontiguousarray(x.swapaxes(0, 1)), lengths=LENGTHS)
    np.testing.assert_array_equal(actual.swapaxes(0, 1), y)
    assert_state_close(end, last)


@both
@pytest.mark.parametrize("kind", ["mlstm", "slstm", "slstm-block", "mlstms-projected"])
def test_dropout_drops_while_training_alone_and_by_the_frameworks_seed(side, kind):
    plain, layer = side.kind(kind), side.kind(kind, dropout=0.5)
    x = draw(8, 32, width(kind))
    expected, _ = side.run(plain, x)
    layer.eval()
    np.testing.assert_array_equal(side.run(layer, x)[0], expected)
    layer.train()
    side.seed(1)
    first, _ = side.run(layer, x)
    second, _ = side.run(layer, x)
    side.seed(1)
    again, _ = side.run(layer, x)
    np.testing.assert_array_equal(again, first)
    assert (first != second).any()
    if kind == "mlstm":  # the one whose output is dropped as it is
        dropped = first == 0
        assert 0.45 < dropped.mean() < 0.55
        assert_close(first[~dropped], 2 * expected[~dropped], LOGITS_F32)
    one, same = (side.parameters(side.make("MLSTM", 16, 16, 2)) for _ in range(2))
    for name, x in one.items():  # initial values follow the seed, and differ by layer
        np.testing.assert_array_equal(same[name], x)
    assert (one["layers.0.proj_up.weight"] != one["layers.1.proj_up.weight"]).all()


@each_of(
    ("name", "sizes", "options", "message"),
    [
        ("SLSTM", (16, 30), {}, "heads is 4, and the width is 30; choose one of"),
        ("SLSTM", (16, 32), {"heads": 2}, r"did you mean '.*num_heads'\?"),
        ("SLSTM", (16, 32), {"backend": "vanilla"}, "backend is 'vanilla', .* options are num_h"),
        ("SLSTM", (16, 32), {"bias": True}, "bias is True, but the slstm layer .* such option; "),
        ("SLSTM", (16, 32), {"chunk_size": 8}, "chunk_size is 8, .* no such option; its options"),
        ("SLSTM", (16, 32), {"feedforward": {}}, "feedforward is {}, .* no such option; its opt"),
        ("MLSTM", (16, 32), {"num_hidden_layers": 2}, "num_hidden_layers is 2, .* no such option"),
        ("MLSTM", (16, 32), {"_mine": 1}, "_mine is 1, but the mlstm layer of variant v1 has no"),
        ("SLSTM", (0, 32), {}, "input_size is 0; set it to the width of the input"),
        ("MLSTM", (16, 32), {"variant": "v2"}, "variant 'v2' does not exist; choose mlstm"),
        ("MLSTM", (16, 32), {"variant": "large", "dropout": 0.1}, "xLSTM Large has none; use"),
        ("MLSTM", (16, 32), {"variant": "large", "num_hidden_layers": 2}, "no such option; "),
        ("MLSTM", (16, 32), {"variant": "large", "tie_word_embeddings": True}, "no such option"),
        ("MLSTM", (16, 32), {"variant": "large", "ffn_proj_factor": 2}, "no such option; "),
        ("XLSTMBlock", (32,), {"cell": "slstm", "bias": True}, "slstm block .* no such option"),
        ("XLSTMBlock", (32,), {"feedforward": {}}, "mlstm block of variant v1 has no such option"),
        (
            "XLSTMBlock",
            (32,),
            {"cell": "slstm", "feedforward": {"dtype": "float32"}},
            "without an effect here: .*dtype",
        ),
        ("XLSTMBlock", (32,), {"cell": "lstm"}, "cell 'lstm' of variant 'v1' does not exist"),
        ("XLSTMBlock", (32,), {"index": 2, "of": 2}, "block 2 of 2 does not exist; count blocks"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_the_way_out(name, sizes, options, message):
    with pytest.raises(ConfigError, match=message):
        SIDES["torch"].make(name, *sizes, **options)


@both
def test_a_batch_or_state_that_does_not_fit_is_refused_with_what_would(side):
    layer, x = side.kind("slstm"), draw(3, S, 16)
    _, state = side.run(layer, x)
    one = state[0][0]
    cases = [
        (x[0, 0], None, {}, ShapeError, r"shape \(16,\); give it as \(B, S, 16\), batch_first=T"),
        (x[:0], None, {}, ShapeError, r"shape \(0, 9, 16\).* at least one row and position"),
        (x[:2], state, {}, ShapeError, r"state has shapes .*\(3, 3, 16\).* needs .*\(2, 3, 16\), "),
        (x, one, {}, ShapeError, r"state has shapes \(3, 3, 16\), but this module needs \[\["),
        (x[0], state, {}, ShapeError, r"this module needs \[\[\(3, 16\), "),
        (x, None, {"lengths": [1, 2]}, ShapeError, r"lengths: shape \(2,\), .* needs \(3,\)"),
        (x, None, {"lengths": [1, 2, 10]}, ConfigError, r"lengths: .* no integers from 0 to 9"),
        (x, None, {"lengths": [1, 2.5, 3]}, ConfigError, "lengths: .* no integers from 0 to 9"),
        (x, None, {"mask": x[0] > 0}, ShapeError, r"mask: shape \(9, 16\), .* needs \(3, 9\)"),
        (x, None, {"mask": x[..., 0]}, ConfigError, "mask: .* no integers from 0 to 1"),
        (x, None, {"mask": x[..., 0] > 0, "lengths": [1, 1, 1]}, ConfigError, "give one of them"),
        (x.astype(np.float16), None, {}, ConfigError, r"the input is .*float16, .* in float32"),
    ]
    for value, first, positions, error, message in cases:
        with pytest.raises(error, match=message):
            side.run(layer, value, first, **positions)
    with pytest.raises(ShapeError, match="the state has shapes int, but this module needs"):
        layer(side.array(x), 3)


@sides
@kinds
def test_a_position_that_is_huge_or_not_finite_changes_no_bit_before_it(side, kind):
    layer, x = side.kind(kind), draw(3, S, width(kind))
    expected, _ = side.run(layer, x)
    # Squares of 1e17 overflow the products of a layer, and those of 3e38 any sum.
    for at, value in ((1, np.inf), (6, np.nan), (5, 1e17), (5, 1e20), (5, 3e38)):
        bad = x.copy()
        bad[0, at] = value
        y, _ = side.run(layer, bad)
        np.testing.assert_array_equal(y[0, :at], expected[0, :at])
        np.testing.assert_array_equal(y[1:], expected[1:])
        assert value == 1e17 or np.isnan(y[0, at:]).all()


@sides
@pytest.mark.parametrize("kind", ["mlstms-projected", "slstms-projected"])
def test_a_position_whose_projection_is_huge_counts_as_infinite_as_one_that_is_huge_itself(
    side, kind
):
    layer, x = side.kind(kind), draw(3, S, 6)
    weights = side.parameters(layer)
    side.load(layer, weights | {"input_proj.weight": np.ones((16, 6), np.float32)})
    expected, _ = side.run(layer, x)
    x[0, 5:] = 9e17  # below the limit, and its projection above
    y, last = side.run(layer, x)
    np.testing.assert_array_equal(y[0, :5], expected[0, :5])
    assert np.isnan(y[0, 5:]).all()
    assert all(np.isfinite(part).all() for parts in last for part in parts)
