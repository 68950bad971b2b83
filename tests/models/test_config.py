"""A config says what can be built, and refuses the rest with a way out."""

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models.families import param_count, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from tests.pairs import each_of

SIZES = {
    "vocab_size": 50304,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_heads": 4,
}


def make(**changes):
    return XLSTMLargeConfig(**(SIZES | changes))


@each_of(
    ("changes", "count"),
    [
        ({"hidden_size": 2560, "num_hidden_layers": 32, "num_heads": 5}, 2_780_449_600),
        # Published with tied embeddings as 126,901,952, which saves one matrix of V d.
        ({"hidden_size": 736, "vocab_size": 65536}, 126_901_952 + 65536 * 736),
    ],
)
def test_parameter_counts_are_those_of_the_published_models(changes, count):
    assert param_count(make(**changes)) == count


@each_of(("name", "count"), [("160m", 162_303_840), ("1.3b", 1_420_839_104), ("7b", 6_865_424_896)])
def test_a_published_architecture_has_the_published_number_of_parameters(name, count):
    assert param_count(load_architecture(name)) == count


@each_of(
    ("d", "width"),
    [(64, 192), (128, 384), (192, 512), (256, 704), (320, 896), (384, 1024), (512, 1408)]
    + [(640, 1728), (768, 2048), (1024, 2752), (2048, 5504), (4096, 10944)],
)
def test_the_feed_forward_width_rounds_as_in_the_published_models(d, width):
    assert make(hidden_size=d).ffn_dim == width


def test_matrices_decay_and_the_embedding_norms_and_biases_do_not():
    spec = param_spec(make(num_hidden_layers=1, use_bias=True))
    for name, parameter in spec.items():
        matrix = len(parameter.shape) == 2 and name != "backbone.embeddings.weight"
        assert parameter.decay == matrix, name
    assert spec["backbone.embeddings.weight"].kind == "rows"
    assert {p.kind for name, p in spec.items() if "embeddings" not in name} == {"dense"}
    assert spec["lm_head.weight"].size == 50304 * 768


def test_bias_adds_one_to_every_map_and_norm_but_the_last():
    extra = set(param_spec(make(num_hidden_layers=1, use_bias=True))) - set(
        param_spec(make(num_hidden_layers=1))
    )
    block = "backbone.blocks.0."
    linears = "mlstm_layer.q mlstm_layer.k mlstm_layer.v mlstm_layer.ogate_preact "
    linears += "mlstm_layer.out_proj ffn.proj_up_gate ffn.proj_up ffn.proj_down"
    norms = "norm_mlstm norm_ffn mlstm_layer.multihead_norm"
    assert extra == {f"{block}{name}.bias" for name in f"{linears} {norms}".split()}


def test_sizes_that_do_not_divide_are_refused_by_name():
    with pytest.raises(
        ConfigError,
        match=r"hidden_size 770 \* qk_dim_factor 0.5 = 385 does not divide into num_heads 4; "
        "change one of the three",
    ):
        make(hidden_size=770)
    with pytest.raises(ConfigError, match=r"96 \* v_dim_factor 0.75 = 72 does not divide"):
        make(hidden_size=96, num_heads=32, qk_dim_factor=1.0, v_dim_factor=0.75)


@each_of(
    ("changes", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; set it to a finite number above 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"gate_soft_cap": float("nan")}, "gate_soft_cap is nan"),
        ({"reset_at_document_boundaries": True}, "bos_token_id is not set"),
        (
            {"reset_at_document_boundaries": True, "bos_token_id": 50304},
            "bos_token_id is 50304 of 50304 ids",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_both_spellings_of_a_size_are_read():
    ours = XLSTMLargeConfig.from_dict(SIZES)
    theirs = {"vocab_size": 50304, "embedding_dim": 768, "num_blocks": 12, "num_heads": 4}
    assert XLSTMLargeConfig.from_dict(theirs) == ours
    assert XLSTMLargeConfig.from_dict(SIZES | theirs) == ours
    with pytest.raises(ConfigError, match="hidden_size is 768 .* embedding_dim is 512"):
        XLSTMLargeConfig.from_dict(SIZES | {"embedding_dim": 512})
    with pytest.raises(ConfigError, match="embedding_dim is 768 .* hidden_size is 512"):
        XLSTMLargeConfig.from_dict(theirs | {"hidden_size": 512})


def test_a_config_survives_being_written_and_read_with_fields_it_does_not_know():
    cfg = XLSTMLargeConfig.from_dict(SIZES | {"eps": 1e-5, "id2label": {"0": "a"}})
    again = XLSTMLargeConfig.from_dict(cfg.to_dict())
    assert again == cfg
    assert again.to_dict() == cfg.to_dict()
    assert cfg.to_dict()["id2label"] == {"0": "a"}


def test_transformers_reads_what_is_written():
    import transformers

    cfg = make(num_hidden_layers=2, chunk_size=32, output_logit_soft_cap=20.0)
    theirs = transformers.xLSTMConfig(**cfg.to_dict())
    assert theirs.hidden_size == theirs.embedding_dim == 768
    assert theirs.num_hidden_layers == theirs.num_blocks == 2
    assert (theirs.chunk_size, theirs.output_logit_soft_cap) == (32, 20.0)
    assert theirs.autocast_kernel_dtype == "float32"


@each_of(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size is 'wide' of type str; give it as int"),
        ({"num_heads": 2.5}, "num_heads is 2.5 of type float; give it as int"),
        ({"use_bias": 1}, "use_bias is 1 of type int; give it as bool"),
        ({"num_heads": True}, "num_heads is True of type bool; give it as int"),
        ({"eps": [1]}, "eps is .1. of type list; give it as float"),
        ({"model_type": "llama"}, "model_type is 'llama', and only 'xlstm'"),
        ({"num_heads": None}, "the architecture lacks num_heads; add it"),
        ({"output_logit_soft_cap": None}, "output_logit_soft_cap is null, no bound"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        XLSTMLargeConfig.from_dict(SIZES | changes)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    cfg = XLSTMLargeConfig.from_dict(SIZES | {"eps": "1e-5", "num_heads": "8"})
    assert (cfg.eps, cfg.num_heads) == (1e-5, 8)


def test_a_misspelt_field_is_answered_with_its_neighbour_where_fields_are_written_by_hand():
    data = SIZES | {"gate_softcap": 15.0}
    with pytest.raises(
        ConfigError, match="unknown .* 'gate_softcap'; did you mean 'gate_soft_cap'"
    ):
        XLSTMLargeConfig.from_dict(data, strict=True)
    assert XLSTMLargeConfig.from_dict(data).extra == {"gate_softcap": 15.0}
