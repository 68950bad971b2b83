"""A configuration of either family says what can be built, and refuses the rest with a way out."""

import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import param_count, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.models.golden import V1_MODELS, meta, model_case
from tests.models.sample import package_of
from tests.pairs import each_of

LARGE = {"vocab_size": 50304, "hidden_size": 768, "num_hidden_layers": 12, "num_heads": 4}
V1 = {"vocab_size": 50304, "embedding_dim": 768, "num_blocks": 24}
V1 |= {"mlstm_block": {}, "slstm_block": {}}


def large(**changes):
    return XLSTMLargeConfig.from_dict(LARGE | changes, strict=True)


def v1(**changes):
    return XLSTMV1Config.from_dict(V1 | changes, strict=True)


def in_mlstm(**fields):
    return {"mlstm_block": {"mlstm": fields}}


@each_of(
    ("cfg", "count"),
    [
        # Published with tied embeddings as 126,901,952, which saves one matrix of V d.
        (large(hidden_size=736, vocab_size=65536), 126_901_952 + 65536 * 736),
        (load_architecture("125m"), 163_806_144),
        (load_architecture("160m"), 162_303_840),
        (load_architecture("830m"), 834_418_368),
        (load_architecture("1.3b"), 1_420_839_104),
        (load_architecture("2.7b"), 2_780_449_600),
        (load_architecture("7b"), 6_865_424_896),
    ],
)
def test_parameter_counts_are_those_of_the_published_models(cfg, count):
    assert param_count(cfg) == count


def test_widths_round_as_in_the_published_models():
    sizes = {64: 192, 128: 384, 192: 512, 256: 704, 320: 896, 384: 1024, 512: 1408, 640: 1728}
    sizes |= {768: 2048, 1024: 2752, 2048: 5504, 4096: 10944}
    assert {d: large(hidden_size=d).ffn_dim for d in sizes} == sizes
    down = {"round_proj_up_dim_up": False, "proj_factor": 2.0}
    blocks = in_mlstm(proj_factor=1.5, round_proj_up_to_multiple_of=16)
    blocks |= {"slstm_block": {"slstm": {"num_heads": 5}, "feedforward": down}}
    narrow = v1(embedding_dim=100, slstm_at=[1], **blocks)
    for cfg, widths in ((v1(slstm_at=[1]), (1536, 1024)), (narrow, (160, 192))):
        (mlstm,), (_, ffn) = cfg.layout.blocks[:2]
        assert (mlstm.layer.inner, ffn.layer.inner) == widths


def test_matrices_of_large_decay_and_the_embedding_norms_and_biases_do_not():
    spec = param_spec(large(num_hidden_layers=1, use_bias=True))
    for name, parameter in spec.items():
        matrix = len(parameter.shape) == 2 and name != "backbone.embeddings.weight"
        assert parameter.decay == matrix, name
        assert parameter.kind == ("rows" if "embeddings" in name else "dense")
    tied = v1(tie_weights=True)  # a step touches every row of the head
    assert param_spec(tied)["token_embedding.weight"].kind == "dense"


def test_both_spellings_of_a_size_are_read_and_numbers_that_yaml_reads_as_text():
    theirs = {"vocab_size": 50304, "embedding_dim": 768, "num_blocks": 12, "num_heads": 4}
    assert XLSTMLargeConfig.from_dict(theirs) == XLSTMLargeConfig.from_dict(LARGE | theirs)
    assert families.read(V1) == v1()  # a block alone tells the family
    assert large(eps="1e-5", num_heads="8") == large(eps=1e-5, num_heads=8)
    cfg = v1(dropout="1e-1", **in_mlstm(proj_factor="2e0", num_heads="8"))
    assert (cfg.dropout, cfg.mlstm_block.mlstm.proj_factor) == (0.1, 2.0)


@each_of(
    ("kind", "data", "place"),
    [
        (XLSTMLargeConfig, LARGE | {"eps": 1e-5, "later": {"0": "a"}}, ()),
        (XLSTMV1Config, V1 | {"later": 1, "slstm_block": {"slstm": {}}}, ()),
        (XLSTMV1Config, V1 | {"slstm_block": {"slstm": {"later": 2}}}, ("slstm_block", "slstm")),
    ],
)
def test_a_config_survives_being_written_and_read_with_fields_it_does_not_know(kind, data, place):
    cfg = kind.from_dict(data)
    written = cfg.to_dict()
    assert families.read(written) == cfg
    assert families.read(written).to_dict() == written
    for section in place:
        data, written = data[section], written[section]
    assert written["later"] == data["later"]


@each_of("name", V1_MODELS)
def test_a_config_of_the_package_is_read_with_the_results_it_stores(name):
    cfg, recorded = model_case(name).cfg, meta(name)["config"]
    assert list(cfg.slstm_at) == recorded["slstm_at"]
    if cfg.mlstm_block is not None:
        layers = (part.layer for part in cfg.layout.parts())
        mlstm = next(layer for layer in layers if layer.name == "mlstm-v1")
        assert mlstm.inner == recorded["mlstm_block"]["mlstm"]["_inner_embedding_dim"]
    assert families.read(cfg.to_dict()) == cfg == XLSTMV1Config.from_dict(recorded)


def test_without_mlstm_blocks_all_blocks_are_slstm_and_absent_parts_have_defaults():
    cfg = XLSTMV1Config.from_dict({k: x for k, x in V1.items() if k != "mlstm_block"})
    assert cfg.slstm_at == tuple(range(24))
    assert cfg.slstm_block.feedforward is not None
    assert v1(slstm_at="all", slstm_block={"feedforward": None}).slstm_block.feedforward is None
    assert v1(slstm_at=[20, 3]).slstm_at == (3, 20)
    assert v1(slstm_block={"slstm": {"num_heads": 5}}).slstm_at == ()  # blocks that are not used


@each_of(
    "changes",
    [
        {"slstm_at": [1], "num_blocks": 2, "bias": True, "weight_decay_on_embedding": True},
        {"slstm_at": "all", "num_blocks": 1, "mlstm_block": None, "tie_weights": True},
        {"num_blocks": 1, "slstm_block": None, "dropout": 0.1, "add_embedding_dropout": True},
    ],
)
def test_the_package_builds_the_same_model_from_what_is_written(changes):
    cfg = v1(vocab_size=50, embedding_dim=32, context_length=8, chunk_size=4, **changes)
    model = package_of(cfg)
    theirs = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert {name: spec.shape for name, spec in param_spec(cfg).items()} == theirs
    decays, _ = model.get_weight_decay_optim_group_param_names()
    assert {name for name, spec in param_spec(cfg).items() if spec.decay} == set(decays)


RESET = {"reset_at_document_boundaries": True}
CUT = {"slstm_at": [0], "slstm_block": {"slstm": {"gradient_recurrent_cut": True}}}
FLAT = {"proj_factor": 0.01, "round_proj_up_dim_up": False}


@each_of(
    ("base", "changes", "message"),
    [
        (LARGE, {"hidden_size": 770}, "qk_dim_factor 0.5 = 385 does not divide into num_heads 4;"),
        (LARGE, {"num_heads": 0}, "num_heads is 0; wanted a whole number above 0 and at most 1048"),
        (LARGE, RESET, "bos_token_id is not set"),
        (V1, RESET | {"bos_token_id": 50304}, "bos_token_id is 50304 of 50304 ids"),
        (LARGE, {"num_heads": None}, "the architecture lacks num_heads; add it"),
        (LARGE, {"output_logit_soft_cap": None}, "output_logit_soft_cap is null, no bound"),
        (LARGE, {"ngram_orders": "1-8"}, "ngram_orders is '1-8'; give orders from 2 to 16"),
        (LARGE, {"ngram_rows": 1000}, "ngram_rows is 1000; set it to a power of two"),
        (LARGE, {"ngram_dim": 5000}, "ngram_dim is 5000; wanted a whole number above 0"),
        (LARGE, {"gate_softcap": 15.0}, "unknown .*'gate_softcap'; did you mean 'gate_soft_cap'"),
        (LARGE, {"embedding_dim": 512}, "hidden_size is 768 and, as embedding_dim, 512; keep"),
        (V1, {"slstm_at": [24]}, "slstm_at names block 24, and the model has blocks 0 to 23"),
        (V1, {"slstm_at": [1], "slstm_block": None}, "there is no slstm_block; add slstm_block"),
        (V1, {"mlstm_block": 3}, "mlstm_block is 3; give it fields such as mlstm"),
        (V1, in_mlstm(num_head=4), "num_head'; did you mean 'mlstm_block.mlstm.num_heads'"),
        (V1, in_mlstm(conv1d_kernel_size=1), "mlstm_block: conv is 1; set it to 2 or more"),
        (V1, CUT, "is True, and only False is supported; rem"),
        (V1, in_mlstm(qkv_proj_blocksize=5), "does not divide into blocks of qkv_block 5;"),
        (V1, in_mlstm(**FLAT), "rounded to 0, is no width; set round_proj_up_dim_up to true"),
        (V1, {"model_type": "xlstm_v2"}, "which is not a family of this package; did you mean"),
        (V1, {1: 2}, "the architecture has the field 1, which is not a name"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_by_name(base, changes, message):
    with pytest.raises(ConfigError, match=message):
        families.read(base | changes, strict=True)
