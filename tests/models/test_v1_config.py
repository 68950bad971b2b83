"""A config of the original stack says what can be built, and refuses the rest with a way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import param_count, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.models.golden import V1_MODELS, model_case, recorded_config
from tests.pairs import each_of

SIZES = {
    "vocab_size": 50304,
    "embedding_dim": 768,
    "num_blocks": 24,
    "mlstm_block": {},
    "slstm_block": {},
}

FLAT = {"proj_factor": 0.01, "round_proj_up_dim_up": False}


def make(**changes):
    return XLSTMV1Config.from_dict(SIZES | changes, strict=True)


def test_the_125m_model_has_the_published_number_of_parameters():
    cfg = load_architecture("125m")
    assert families.param_count(cfg) == 163_806_144  # published as 163.806 M, mLSTM alone
    assert sum(spec.size for spec in families.param_spec(cfg).values()) == 163_806_144


@each_of(
    "changes",
    [
        {},
        {"slstm_at": [3, 20]},
        {"slstm_at": "all"},
        {"bias": True, "tie_weights": True, "slstm_at": [0], "add_post_blocks_norm": False},
        {"slstm_at": [1], "slstm_block": {"feedforward": None}},
        {"slstm_at": [1], "slstm_block": {"slstm": {"conv1d_kernel_size": 0}}},
    ],
)
def test_parameters_are_counted_as_they_are_listed(changes):
    cfg = make(**changes)
    assert param_count(cfg) == sum(spec.size for spec in param_spec(cfg).values())


def test_the_small_7to1_model_has_one_slstm_block_in_eight():
    cfg = load_architecture("7to1-tiny")
    assert isinstance(cfg, XLSTMV1Config)
    assert (cfg.embedding_dim, cfg.num_blocks, cfg.slstm_at) == (128, 8, (1,))
    assert (cfg.vocab_size, cfg.bos_token_id) == (320, 256)
    assert families.param_count(cfg) == 956_216


@each_of("weight_decay_on_embedding", [False, True])
@each_of("tie_weights", [False, True])
def test_weight_decay_follows_the_groups_of_the_package(weight_decay_on_embedding, tie_weights):
    cfg = make(
        slstm_at=[1],
        bias=True,
        tie_weights=tie_weights,
        weight_decay_on_embedding=weight_decay_on_embedding,
    )
    for name, spec in param_spec(cfg).items():
        expected = "weight" in name and "norm" not in name
        if name == "token_embedding.weight":
            expected = weight_decay_on_embedding
            assert spec.kind == ("dense" if tie_weights else "rows")
        else:
            assert spec.kind == "dense"
        assert spec.decay == expected, name
    assert ("lm_head.weight" in param_spec(cfg)) == (not tie_weights)


def test_widths_are_those_of_the_package():
    assert (make().inner_dim, make().ffn_dim) == (1536, 1024)
    narrow = make(
        embedding_dim=100,
        mlstm_block={"mlstm": {"proj_factor": 1.5, "round_proj_up_to_multiple_of": 16}},
        slstm_block={"feedforward": {"round_proj_up_dim_up": False, "proj_factor": 2.0}},
    )
    assert (narrow.inner_dim, narrow.ffn_dim) == (160, 192)


@each_of("name", V1_MODELS)
def test_a_config_of_the_package_is_read_with_the_results_it_stores(name):
    cfg = model_case(name).cfg
    assert isinstance(cfg, XLSTMV1Config)
    recorded = recorded_config(name)
    assert list(cfg.slstm_at) == recorded["slstm_at"]
    assert XLSTMV1Config.from_dict(recorded, strict=True) == cfg
    if cfg.mlstm_block is not None:
        assert cfg.inner_dim == recorded["mlstm_block"]["mlstm"]["_inner_embedding_dim"]
    again = families.read(cfg.to_dict())
    assert again == cfg
    assert again.to_dict() == cfg.to_dict()


def test_a_config_survives_with_fields_it_does_not_know():
    data = SIZES | {"note": 1, "slstm_block": {"slstm": {"dtype_r": "float32", "later": 2}}}
    cfg = XLSTMV1Config.from_dict(data)
    written = cfg.to_dict()
    assert written["note"] == 1
    assert written["slstm_block"]["slstm"]["dtype_r"] == "float32"
    assert written["slstm_block"]["slstm"]["later"] == 2
    assert families.read(written) == cfg


@each_of("name", [[1], 3, "xlstm_v2"])
def test_a_family_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match="which is not a family of this package; "):
        families.read(SIZES | {"model_type": name})


def test_a_field_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="the architecture has the field 1, which is not a name"):
        families.read({**SIZES, 1: 2})


def test_blocks_alone_tell_the_family():
    assert families.read(SIZES) == make()
    assert families.read(make().to_dict()) == make()


def test_without_mlstm_blocks_all_blocks_are_slstm_and_absent_parts_have_defaults():
    data = {name: value for name, value in SIZES.items() if name != "mlstm_block"}
    cfg = XLSTMV1Config.from_dict(data)
    assert cfg.slstm_at == tuple(range(24))
    assert cfg.feedforward is not None
    without = XLSTMV1Config.from_dict(data | {"slstm_block": {"feedforward": None}})
    assert without.feedforward is None
    assert make(slstm_at=[20, 3]).slstm_at == (3, 20)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    cfg = make(dropout="1e-1", mlstm_block={"mlstm": {"proj_factor": "2e0", "num_heads": "8"}})
    assert (cfg.dropout, cfg.mlstm_layer.proj_factor, cfg.mlstm_layer.num_heads) == (0.1, 2.0, 8)


@each_of(
    ("changes", "message"),
    [
        ({"slstm_at": [24]}, "slstm_at names block 24, and the model has blocks 0 to 23; count"),
        ({"slstm_at": [-1]}, "slstm_at names block -1, and the model has blocks 0 to 23"),
        ({"slstm_at": [1, 1]}, "slstm_at is .1, 1.; name every block once"),
        ({"slstm_at": "some"}, "slstm_at is 'some'; give it a list such as .1., or 'all'"),
        ({"slstm_at": [1.5]}, "slstm_at is 1.5 of type float; give it as int"),
        (
            {"slstm_at": [1], "slstm_block": None},
            "slstm_at is .1. and there is no slstm_block; add slstm_block",
        ),
        (
            {"slstm_at": [1], "mlstm_block": None},
            "slstm_at .1. leaves blocks to mLSTM and there is no mlstm_block; add mlstm_block",
        ),
        ({"slstm_block": None, "mlstm_block": None}, "there is no slstm_block; add slstm_block"),
        ({"mlstm_block": 3}, "mlstm_block is 3; give it fields such as mlstm, or null"),
        ({"mlstm_block": {"mlstm": None}}, "mlstm_block.mlstm is null; leave mlstm_block out"),
        ({"mlstm_block": {"mlstm": []}}, "mlstm_block.mlstm is ..; give it fields"),
        (
            {"mlstm_block": {"slstm": {}}},
            "unknown architecture field 'mlstm_block.slstm'; did you mean 'mlstm_block.mlstm'",
        ),
        (
            {"mlstm_block": {"mlstm": {"num_head": 4}}},
            "'mlstm_block.mlstm.num_head'; did you mean 'mlstm_block.mlstm.num_heads'",
        ),
        ({"embeding_dim": 4}, "'embeding_dim'; did you mean 'embedding_dim'"),
        ({"vocab_size": None}, "the architecture lacks vocab_size; add it"),
        ({"num_blocks": 0}, "num_blocks is 0; set it to a finite number above 0"),
        ({"num_blocks": 10**9, "slstm_at": "all"}, "num_blocks is 1000000000; set it to 4096 at"),
        ({"vocab_size": -1}, "vocab_size is -1; set it"),
        ({"mlstm_block": {"mlstm": {True: 2}}}, "mlstm_block.mlstm has the field True, which is"),
        ({"bias": 1}, "bias is 1 of type int; give it as bool"),
        ({"dropout": 1.0}, "dropout is 1.0; set it to 0 for none, or to a number below 1"),
        ({"model_type": "xlstm"}, "model_type is 'xlstm', and this family is 'xlstm_v1'"),
        (
            {"mlstm_block": {"mlstm": {"embedding_dim": 64}}},
            "mlstm_block.mlstm.embedding_dim is 64 and embedding_dim of the model 768; remove",
        ),
        (
            {"mlstm_block": {"mlstm": {"bias": True}}},
            "mlstm_block.mlstm.bias is True and bias of the model False; remove",
        ),
        (
            {"slstm_block": {"slstm": {"hidden_size": 5}}},
            "slstm_block.slstm.hidden_size is 5 and embedding_dim of the model 768",
        ),
        (
            {"mlstm_block": {"mlstm": {"conv1d_kernel_size": 0}}},
            "mlstm_block.mlstm.conv1d_kernel_size is 0; set it to 2 or more$",
        ),
        (
            {"slstm_block": {"slstm": {"conv1d_kernel_size": 1}}},
            "slstm_block.slstm.conv1d_kernel_size is 1; set it to 2 or more, or to 0 for none",
        ),
        (
            {"slstm_block": {"slstm": {"bias_init": "powerlaw"}}},
            "slstm_block.slstm.bias_init is 'powerlaw'; choose one of powerlaw_blockdependent",
        ),
        (
            {"slstm_block": {"feedforward": {"act_fn": "tanh"}}},
            "slstm_block.feedforward.act_fn is 'tanh'; choose one of gelu, relu",
        ),
        (
            {"slstm_block": {"slstm": {"gradient_recurrent_cut": True}}},
            "gradient_recurrent_cut is True, and only False is supported; remove it",
        ),
        ({"slstm_block": {"slstm": {"function": "lstm"}}}, "function is 'lstm', and only 'slstm'"),
        (
            {"mlstm_block": {"mlstm": {"num_heads": 5}}},
            "embedding_dim 768 .* rounded to 1536, does not divide into mlstm_block.mlstm.num_heads"
            " 5; change one of them",
        ),
        (
            {"mlstm_block": {"mlstm": {"qkv_proj_blocksize": 5}}},
            "does not divide into blocks of mlstm_block.mlstm.qkv_proj_blocksize 5; set that to a",
        ),
        (
            {"mlstm_block": {"mlstm": FLAT}},
            "rounded to 0, is no width; set round_proj_up_dim_up to true",
        ),
        (
            {"slstm_at": [0], "slstm_block": {"slstm": {"num_heads": 5}}},
            "embedding_dim 768 does not divide into slstm_block.slstm.num_heads 5; set "
            "embedding_dim to 770",
        ),
        (
            {
                "slstm_at": [0],
                "slstm_block": {
                    "feedforward": {"proj_factor": 0.01, "round_proj_up_dim_up": False}
                },
            },
            "rounded to a multiple of 64, is 0; set round_proj_up_dim_up to true",
        ),
        (
            {"reset_at_document_boundaries": True},
            "reset_at_document_boundaries is true and bos_token_id is not set",
        ),
        (
            {"reset_at_document_boundaries": True, "bos_token_id": -1},
            "bos_token_id is -1 of",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
PLACES = [
    (section, field)
    for section, names in {
        (): "vocab_size embedding_dim num_blocks slstm_at mlstm_block slstm_block dropout "
        "tie_weights bos_token_id chunk_size context_length model_type",
        ("mlstm_block",): "mlstm",
        (
            "mlstm_block",
            "mlstm",
        ): "num_heads proj_factor conv1d_kernel_size qkv_proj_blocksize bias "
        "round_proj_up_to_multiple_of",
        ("slstm_block",): "slstm feedforward",
        ("slstm_block", "slstm"): "num_heads bias_init initial_val group_norm_weight backend",
        ("slstm_block", "feedforward"): "proj_factor act_fn dropout",
    }.items()
    for field in names.split()
]


@pytest.mark.slow
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_a_field_of_any_value_is_read_or_refused_with_a_way_out(place, value):
    section, field = place
    data = {
        "vocab_size": 32,
        "embedding_dim": 16,
        "num_blocks": 2,
        "slstm_at": [1],
        "mlstm_block": {"mlstm": {}},
        "slstm_block": {"slstm": {}, "feedforward": {}},
    }
    inner = data
    for name in section:
        inner = inner[name]
    inner[field] = value
    cfg, refused = None, ""
    try:
        cfg = families.read(data)
    except ConfigError as error:
        refused = str(error)
    if cfg is None:
        assert ";" in refused
    else:
        assert families.read(cfg.to_dict()) == cfg


def test_a_size_of_blocks_that_are_not_used_may_be_anything():
    assert make(slstm_block={"slstm": {"num_heads": 5}}).slstm_at == ()


@each_of(
    "changes",
    [
        {"slstm_at": [1], "num_blocks": 2, "bias": True},
        {"slstm_at": "all", "num_blocks": 1, "mlstm_block": None, "tie_weights": True},
        {"num_blocks": 1, "slstm_block": None, "dropout": 0.1, "add_embedding_dropout": True},
    ],
)
def test_the_package_builds_the_same_model_from_what_is_written(changes):
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    cfg = make(vocab_size=50, embedding_dim=32, context_length=8, chunk_size=4, **changes)
    fields = cfg.to_package()
    if fields["mlstm_block"] is not None:
        layer = mLSTMLayerConfig(**fields["mlstm_block"]["mlstm"])
        fields["mlstm_block"] = mLSTMBlockConfig(mlstm=layer)
    if fields["slstm_block"] is not None:
        fields["slstm_block"] = sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(**fields["slstm_block"]["slstm"]),
            feedforward=FeedForwardConfig(**fields["slstm_block"]["feedforward"]),
        )
    model = xLSTMLMModel(xLSTMLMModelConfig(**fields))
    theirs = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert {name: spec.shape for name, spec in param_spec(cfg).items()} == theirs
    decays, _ = model.get_weight_decay_optim_group_param_names()
    assert {name for name, spec in param_spec(cfg).items() if spec.decay} == set(decays)
