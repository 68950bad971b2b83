"""`mad consensus` and `mad deepen`: from a study to a model for `mlxhog train`.

The consensus has the most frequent layers of the best candidates; deepening keeps proportions.
"""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.cli import main
from mlxhog.errors import ConfigError
from mlxhog.mad.winner import consensus, deepened, read_source, unit_of, upper_part
from mlxhog.models.families import init_params
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.models.registry import load_architecture
from mlxhog.nn.mlx import LanguageModel as MLXModel
from mlxhog.nn.torch import LanguageModel
from tests.cli.command import told
from tests.mad.report.sample import CONV, study
from tests.pairs import each_of
from tests.tolerances import LOGITS_F32, assert_close


def scored(*lines):
    return [(tuple(text.split()), score) for text, score in lines]


def test_every_slot_takes_the_layer_that_most_of_the_upper_part_have():
    upper = ("a x b y", 0.91), ("a x c y", 0.90), ("b x b z", 0.89)
    slots, voters = consensus(scored(*upper, ("c z c z", 0.20), ("c z c z", 0.10)))
    assert slots == [{"a": 2, "b": 1}, {"x": 3}, {"b": 2, "c": 1}, {"y": 2, "z": 1}]
    assert voters == scored(*upper)


@each_of(
    ("candidates", "top", "layers", "voters"),
    [
        ((("a", 0.9), ("b", 0.8), ("b", 0.7), ("a", 0.1)), 4, "b", 4),  # a tie: the higher mean
        ((("a", 0.9), ("b", 0.8), ("b", 0.1)), 1, "a", 1),
        ((("a", 0.9), ("b", 0.8), ("b", 0.1)), 9, "b", 3),
        # those of another depth than most do not vote
        ((("a x", 0.9), ("b x b x", 0.8), ("b x c x", 0.7), ("d x", 0.1)), 3, "b x b x", 2),
        ((("a x a x", 0.9), ("b x", 0.8)), 2, "a x a x", 1),
    ],
)
def test_the_consensus_is_of_the_best_candidates_of_the_most_frequent_depth(
    candidates, top, layers, voters
):
    slots, voted = consensus(scored(*candidates), top=top)
    assert [next(iter(votes)) for votes in slots] == layers.split()
    assert len(voted) == voters


@each_of(
    ("scores", "upper"),
    [
        ([0.9, 0.1], 2),
        ([0.5, 0.5, 0.5, 0.5], 4),
        ([0.9, 0.88, 0.3, 0.29, 0.1], 2),
        # sums of squares by hand: 1 | 3 is 0.0467, 2 | 2 is 0.01, 3 | 1 is 0.0467
        ([0.8, 0.7, 0.4, 0.3], 2),
    ],
)
def test_the_upper_part_ends_where_the_scores_fall_apart(scores, upper):
    assert upper_part(scores) == upper


BLOCKS, FREE = parse("mlstm swiglu slstm mlp"), parse("mlstm slstm swiglu")
ONCE, HALF = "mlstm swiglu slstm mlp", "mlstm swiglu"


@each_of(
    ("layers", "depth", "how", "expected"),
    [
        (BLOCKS, 8, "stack", f"{ONCE} {ONCE}"),
        (BLOCKS, 6, "stack", f"{ONCE} {HALF}"),
        (FREE, 7, "stack", "mlstm slstm swiglu mlstm slstm swiglu mlstm"),
        (BLOCKS, 8, "stretch", f"{HALF} {HALF} slstm mlp slstm mlp"),
        (BLOCKS, 6, "stretch", f"{HALF} {HALF} slstm mlp"),
        (FREE, 7, "stretch", "mlstm mlstm mlstm slstm slstm swiglu swiglu"),
    ],
)
def test_stacking_puts_copies_on_top_and_stretching_repeats_units_in_place(
    layers, depth, how, expected
):
    result = canonical(deepened(layers, depth, stack=how == "stack"))
    assert result.replace("(h4)", "") == expected


@each_of(
    ("layers", "unit"),
    [
        (ONCE, 2), ("mlstm slstm swiglu", 1), ("swiglu mlstm", 1), ("mlstm swiglu mlstm", 1),
        ("mlstm", 1), ("canon mlstm canon swiglu canon slstm canon mlp", 4),
        ("canon mlstm gated-conv swiglu", 1),
    ],
)  # fmt: skip
def test_blocks_are_found_where_mixers_and_channel_mixers_alternate(layers, unit):
    assert unit_of(parse(layers)) == unit


@each_of(("depth", "message"), [(3, "depth 3 is less than the 4 layers"), (7, "give 6 or 8")])
def test_a_depth_that_cannot_be_is_answered_with_those_that_can(depth, message):
    with pytest.raises(ConfigError, match=message):
        deepened(BLOCKS, depth, stack=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("studies")


def layers_of(path):
    return canonical(load_architecture(path).layers)


def test_consensus_prints_slots_voters_and_the_score_where_it_is_known(here, capsys):
    study(here)
    assert main("mad consensus first --top 2".split()) == 0
    output = capsys.readouterr().out
    assert "2 of 3 candidates vote, those with 2 layers of the best 2" in output
    assert "gated-conv 1, swiglu 1" in output
    assert "next: mlxhog mad consensus first --top 2 --output winner.yaml" in output
    output = told(capsys, "mad", "consensus", "first", "--output", "w.yaml")
    assert output["layers"] == CONV == layers_of(output["file"])
    assert output["slots"][0] == {"slot": 1, "layer": "gated-conv", "votes": {"gated-conv": 1}}
    assert output["voters"] == [{"layers": CONV, "score": pytest.approx(0.9)}]
    assert (output["candidates"], output["score"]) == (3, pytest.approx(0.9))


def test_consensus_says_when_its_architecture_is_behind_the_best_candidate(here, capsys):
    study(here)
    assert main("mad consensus first --top 3".split()) == 0  # two of three have swiglu in each slot
    says = "is behind the best, with 0.300; the best candidate has 0.900: gated-conv swiglu"
    assert says in (output := capsys.readouterr().out)
    assert main(output.partition("(mlxhog ")[2].partition(")")[0].split()) == 0
    assert layers_of("best.yaml") == CONV
    assert main("mad consensus first --top 2".split()) == 0
    assert "this architecture" not in capsys.readouterr().out


def test_candidates_that_lack_runs_do_not_vote_and_without_others_it_says_how_to_go_on(
    here, capsys
):
    study(here, change=lambda one: None if (one.candidate, one.seed) == (CONV, 1) else one)
    assert told(capsys, "mad", "consensus", "first")["candidates"] == 2
    study(here, "second", change=lambda one: one if one.seed == 1 else None)
    assert main("mad consensus second".split()) == 2
    assert "continue it: mlxhog mad resume second" in capsys.readouterr().err


@each_of("words", ["consensus first", "deepen first --depth 4 --output deep.yaml"])
def test_a_study_whose_candidates_all_diverged_has_no_winner(here, capsys, words):
    study(here, change=lambda one: replace(one, status="diverged"))
    assert main(["mad", *words.split()]) == 2
    assert "diverged or failed; the reasons: mlxhog mad lead" in capsys.readouterr().err
    assert not Path("deep.yaml").exists()


def test_the_winner_of_a_study_is_deepened_at_the_width_it_was_searched_at(here, capsys):
    study(here, dim=48)
    output = told(capsys, "mad", "deepen", "first", "--depth", "6", "--output", "deep.yaml")
    assert (output["depth"], output["dim"], output["layers"]) == (6, 48, " ".join([CONV] * 3))
    assert layers_of("deep.yaml") == output["layers"]


def test_a_study_below_the_home_folder_is_found_by_its_path(here, monkeypatch):
    study(here)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    about, _ = read_source("~/studies/first")
    assert about.startswith("best of study first, score 0.900")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("how", ["stack", "stretch"])
def test_a_file_that_is_deepened_can_be_deepened_again(how):
    line = "mlstm(h2) swiglu(inner=48) slstm(h2) mlp"
    words = f"--depth 8 --how {how} --output a.yaml --dim 32"
    assert main(["mad", "deepen", line, *words.split()]) == 0
    assert main("mad deepen a.yaml --depth 8 --output b.yaml".split()) == 0
    assert Path("a.yaml").read_bytes() == Path("b.yaml").read_bytes()
    assert sorted(load_architecture("a.yaml").layers, key=str) == sorted(parse(line) * 2, key=str)


@pytest.mark.usefixtures("here")
def test_a_line_of_layers_may_be_longer_than_the_name_of_a_file():
    assert (
        main(["mad", "deepen", "gated-conv swiglu " * 20, *"--depth 80 --output d.yaml".split()])
        == 0
    )
    assert len(load_architecture("d.yaml").layers) == 80
    with pytest.raises(ConfigError, match="is neither a study nor an architecture"):
        read_source("mlstm," * 50)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_winner_travels_from_the_search_to_transformers_and_to_modules_of_both_frameworks():
    pytest.importorskip("transformers", reason="the extra [peers]")
    space = "space: {depth: 2, mixers: [mlstm(h2), gated-conv], channels: [swiglu(inner=16)]}"
    Path("space.yaml").write_text(space)
    Path("text.txt").write_text("lock free adds never wait " * 1000)
    for line in (
        "mad search --space space.yaml --study s --tasks M --steps 2 --dim 16 --no-prune --quiet",
        "mad consensus s --output winner.yaml",
        "mad deepen winner.yaml --depth 4 --output deep.yaml",
        "train --model deep.yaml --data text.txt --workers mlx:cpu --seq-len 16 --steps 2 "
        "--batch-size 2 --val-subset-tokens 512 --quiet",
        "convert latest exported --format hf --check --quiet",  # compares the logits
    ):
        assert main(line.split()) == 0
    tokens, ours = np.random.default_rng(0).integers(0, 256, (2, 12)), LanguageModel("exported")
    with torch.no_grad():
        whole, _ = ours(torch.tensor(tokens))
        first, state = ours(torch.tensor(tokens[:, :7]))
        rest, _ = ours(torch.tensor(tokens[:, 7:]), state)
    for logits in (torch.cat([first, rest], 1), MLXModel("exported")(mx.array(tokens))[0]):
        assert_close(np.asarray(logits), whole.numpy(), LOGITS_F32)


@pytest.mark.usefixtures("here")
def test_a_module_of_a_model_file_has_the_initial_values_of_training_and_learns():
    Path("m.yaml").write_text("{dim: 16, layers: 'mlstm(h2) swiglu(inner=16)'}")
    model = LanguageModel("m.yaml", seed=3)
    values = init_params(load_architecture("m.yaml"), 3)
    own = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert own.keys() == values.keys()
    for name, value in own.items():
        np.testing.assert_array_equal(value, values[name])
    logits, _ = model(torch.zeros(1, 8, dtype=torch.long))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
