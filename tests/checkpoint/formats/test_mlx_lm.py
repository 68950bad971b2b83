"""`convert --format mlx-lm`: mlx-lm loads an export, computes the same, quantizes and trains it."""

import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx
import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import can_trim_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats.converting import convert
from mlxhog.cli import main
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families, lm_float64
from mlxhog.models.adapters import A, LoRA
from tests.cli import command
from tests.models.sample import perturbed, perturbed_params
from tests.processes import python
from tests.saved import letters, saved_run, write_adapter
from tests.tolerances import GRADIENT_F32, LOGITS_F32, LOSS_BF16, LOSS_F32, assert_close

CHUNK, PREFILL, LENGTH = 16, 37, 45  # no multiples of each other
SIZES = {
    "vocab_size": 320,
    "bos_token_id": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "chunk_size": CHUNK,
}
LARGE = {"model_type": "xlstm", "num_heads": 2} | SIZES
V1 = {"model_type": "xlstm_v1", "mlstm_block": {}, "slstm_block": {}, "slstm_at": [1]} | SIZES
BARE = {"slstm": {"conv1d_kernel_size": 0, "group_norm_weight": False}, "feedforward": None}
RELU2 = {"feedforward": {"act_fn": "relu^2", "bias": True}}
KINDS = {
    "large": LARGE,
    "large-tied-biases": LARGE
    | {"tie_word_embeddings": True, "use_bias": True, "out_norm_bias": True, "norm_eps": 1e-5},
    "large-without-norm": LARGE | {"add_out_norm": False, "qk_dim_factor": 1.0, "eps": 1e-3},
    "v1": V1,
    "v1-tied-biases": V1 | {"tie_word_embeddings": True, "bias": True, "slstm_block": RELU2},
    "v1-bare": V1 | {"slstm_block": BARE, "add_post_blocks_norm": False},
}
"""Models with both values of every field that changes the computation."""

TOKENS = np.random.default_rng(0).integers(0, 256, (1, LENGTH))


@pytest.fixture(params=KINDS)
def model(request):
    return families.read(KINDS[request.param])


def exported(folder, model, dtype=None):
    """The export of a run, loaded by mlx-lm, its config, and the run's parameters."""
    params = perturbed_params(model, seed=1)
    run = saved_run(folder / "runs", model=model, params=params)
    convert(formats.open(run.model.resolve()), folder / "out", "mlx-lm", dtype)
    return *load_model(folder / "out", trust_remote_code=True), params


def mean_loss(theirs):
    logits = theirs(mx.array(TOKENS[:, :-1])).astype(mx.float32)
    return nn.losses.cross_entropy(logits, mx.array(TOKENS[:, 1:]), reduction="mean")


def by_our_names(tree):
    """Arrays of a tree by the names of our parameters."""
    theirs = {
        "cell.recurrent_kernel": "cell._recurrent_kernel_",
        "slstm_cell.bias": "slstm_cell._bias_",
    }
    named = dict(tree_flatten(tree))
    return {
        next((name.replace(a, b) for a, b in theirs.items() if name.endswith(a)), name): value
        for name, value in named.items()
    }


def test_a_prefill_and_single_steps_compute_our_logits(tmp_path, model):
    theirs, _, params = exported(tmp_path, model)
    cache, ids = theirs.make_cache(), mx.array(TOKENS)
    parts = [theirs(ids[:, :PREFILL], cache=cache)]
    parts += [theirs(ids[:, t : t + 1], cache=cache) for t in range(PREFILL, LENGTH)]
    expected, _ = lm_float64.logits(model, params, TOKENS)
    assert_close(np.array(mx.concatenate(parts, 1)), expected, LOGITS_F32)
    assert_close(np.array(theirs(ids)), expected, LOGITS_F32, label="without a cache")
    assert not can_trim_prompt_cache(cache)


def test_64_greedy_tokens_are_ours(tmp_path, model):
    theirs, _, params = exported(tmp_path, model)
    steps = generate_step(mx.array(TOKENS[0]), theirs, max_tokens=64, prefill_step_size=PREFILL)
    answer, ids, state = [token for token, _ in steps], TOKENS, None
    for token in answer:
        logits, state = lm_float64.logits(model, params, ids, state)
        assert token == logits[0, -1].argmax()
        ids = np.array([[token]])
    assert len(answer) == 64


def test_gradients_through_several_chunks_are_ours(tmp_path, model):
    theirs, _, params = exported(tmp_path, model)
    loss, grads = nn.value_and_grad(theirs, mean_loss)(theirs)
    ours, expected = lm_float64.differentiate(model, params, TOKENS[:, :-1], TOKENS[:, 1:])
    assert_close(np.array(loss), ours, LOSS_F32)
    grads = by_our_names(grads)
    assert grads.keys() == expected.keys()
    for name, wanted in expected.items():
        assert_close(np.array(grads[name]), wanted, GRADIENT_F32, label=name)


def test_rows_of_a_batch_with_padding_compute_what_each_computes_alone(tmp_path, model):
    theirs, _, params = exported(tmp_path, model)
    rows = [TOKENS[0, :5], TOKENS[0, 3:33], TOKENS[0, 9:10]]
    longest = max(map(len, rows))
    padded = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    last = mx.array([[7], [8], [9]])

    first = theirs.make_cache()[0]
    batch = [
        type(first).merge(caches)
        for caches in zip(*(theirs.make_cache() for _ in rows), strict=True)
    ]
    for one in batch:  # as the server does
        one.prepare(lengths=[len(row) for row in rows])
    for start in range(0, longest, 12):
        theirs(mx.array(padded[:, start : start + 12]), cache=batch)
    for one in batch:
        one.finalize()
        one.filter([2, 0, 1])
    logits = np.array(theirs(last, cache=batch))

    for at, (row, token) in enumerate(zip((rows[2], rows[0], rows[1]), (7, 8, 9), strict=True)):
        expected, _ = lm_float64.logits(model, params, np.append(row, token)[None])
        assert_close(logits[at, 0], expected[0, -1], LOGITS_F32, label=str(at))


@pytest.mark.parametrize("fields", [LARGE, V1], ids=["large", "v1"])
def test_weights_in_bfloat16_stay_so_and_have_about_the_same_loss(tmp_path, fields):
    model = families.read(fields)
    theirs, _, params = exported(tmp_path, model, "bfloat16")
    assert {w.dtype for _, w in tree_flatten(theirs.parameters())} == {mx.bfloat16}
    expected, _ = lm_float64.differentiate(model, params, TOKENS[:, :-1], TOKENS[:, 1:])
    assert_close(np.array(mean_loss(theirs)), expected, LOSS_BF16)


@pytest.mark.parametrize("fields", [LARGE, V1], ids=["large", "v1"])
def test_quantization_leaves_out_gates_norms_and_recurrent_matrices(tmp_path, fields):
    model = families.read(fields)
    theirs, config, params = exported(tmp_path, model)
    theirs, _ = quantize_model(theirs, config, group_size=64, bits=4)
    leaves = dict(tree_flatten(theirs.parameters()))
    kept = re.compile(r"(igate|fgate)(_preact)?\.weight$")
    for name, spec in families.param_spec(model).items():
        stem = name.removesuffix(".weight")
        is_quantized = f"{stem}.scales" in leaves
        assert is_quantized == (len(spec.shape) == 2 and kept.search(name) is None), name
        if is_quantized:
            w = (leaves[f"{stem}.{part}"] for part in ("weight", "scales", "biases"))
            params[name] = np.array(mx.dequantize(*w, group_size=64, bits=4))
    expected, _ = lm_float64.logits(model, params, TOKENS)
    assert_close(np.array(theirs(mx.array(TOKENS))), expected, LOGITS_F32)


def test_mlxhog_reads_an_export_and_other_formats_name_no_file_of_it(tmp_path, model):
    _, _, params = exported(tmp_path, model)
    opened = formats.open(tmp_path / "out")
    assert opened.config == model
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor, params[name], err_msg=name)
    convert(opened, tmp_path / "back", "mlxhog")
    assert "model_file" not in json.loads((tmp_path / "back" / "config.json").read_bytes())


def saved_by_mlx_lm(folder, theirs, config):
    """A folder with a model that mlx-lm has loaded, and perhaps changed, as it saves it."""
    save_model(folder, theirs)
    save_config(config, folder / "config.json")
    return folder


def test_mlxhog_reads_what_mlx_lm_saves_of_an_export(tmp_path, model):
    theirs, config, params = exported(tmp_path, model)
    opened = formats.open(saved_by_mlx_lm(tmp_path / "theirs", theirs, config))
    assert opened.config == model
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor, params[name], err_msg=name)


@pytest.mark.parametrize("fields", [LARGE, V1], ids=["large", "v1"])
def test_what_mlx_lm_has_quantized_is_refused_with_the_way_out(tmp_path, fields):
    theirs, config, _ = exported(tmp_path, families.read(fields))
    theirs, config = quantize_model(theirs, config, group_size=64, bits=4)
    folder = saved_by_mlx_lm(tmp_path / "theirs", theirs, config)
    says = rf"theirs is quantized; name the export .* --hf-path {folder} .* --dequantize "
    for names in ((), ("quantization", "quantization_config")):
        save_config({k: v for k, v in config.items() if k not in names}, folder / "config.json")
        with pytest.raises(CheckpointError, match=says):
            formats.open(folder)


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        (LARGE, ("q", "igate_preact")), (LARGE, ("*.fgate_preact",)),
        (V1, ("proj_up", "mlstm_cell.igate")), (V1, ("mlstm_cell.fgate",)),
    ],
    ids=["large", "large-alone", "v1", "v1-alone"],
)  # fmt: skip
def test_an_adapter_of_gates_is_refused_apart_and_can_be_merged(tmp_path, fields, targets):
    model = replace(families.read(fields), adapter=LoRA(rank=2, targets=targets))
    run = saved_run(tmp_path / "runs", model=families.read(fields))
    (tmp_path / "own").mkdir()
    params = families.init_params(model, 0)
    write_adapter(tmp_path / "own", model, params, base=run.model.resolve())
    source = formats.open(tmp_path / "own")
    says = "mlx-lm adapts no gates, .*gate.*--merge --format mlx-lm, or use --format peft"
    with pytest.raises(ConfigError, match=says):
        convert(source, tmp_path / "out", "mlx-lm-adapter")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", "mlx-lm")
    assert load_model(tmp_path / "out", trust_remote_code=True)


@pytest.mark.parametrize("fields", [LARGE, V1], ids=["large", "v1"])
def test_an_adapter_is_merged_and_apart_it_fits_the_export_of_its_base(tmp_path, fields):
    theirs, _, base = exported(tmp_path, families.read(fields))
    model = replace(families.read(fields), adapter=LoRA(rank=4))
    own = perturbed({name: base[name] if name in base else np.zeros(spec.shape, np.float32)
                     for name, spec in families.trainable_spec(model).items()}, seed=2)  # fmt: skip
    (tmp_path / "own").mkdir()
    write_adapter(tmp_path / "own", model, own, base=tmp_path / "out")
    for to in ("mlx-lm", "mlx-lm-adapter"):
        convert(formats.open(tmp_path / "own"), tmp_path / to, to)
    whole, _ = load_model(tmp_path / "mlx-lm", trust_remote_code=True)
    expected, _ = lm_float64.logits(model, base | own, TOKENS)
    ids = mx.array(TOKENS)
    assert np.abs(np.array(theirs(ids)) - expected).max() > 0.1
    assert_close(np.array(whole(ids)), expected, LOGITS_F32)
    apart = load_adapters(theirs, tmp_path / "mlx-lm-adapter").eval()
    assert_close(np.array(apart(ids)), expected, LOGITS_F32)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (LARGE | {"ngram_orders": [2]}, "with tables of n-grams"),
        (V1 | {"reset_at_document_boundaries": True, "bos_token_id": 256}, "reset_at_document"),
        ({"vocab_size": 320, "dim": 16, "layers": "mlstm(h2)"}, "no model for"),
    ],
    ids=["ngrams", "resets", "layers"],
)
def test_a_model_that_the_code_lacks_is_refused_and_nothing_is_written(tmp_path, fields, what):
    run = saved_run(tmp_path / "runs", model=families.read(fields))
    with pytest.raises(ConfigError, match=f"mlx-lm .*{what}.*; use --format hf or mlxhog"):
        convert(formats.open(run.model.resolve()), tmp_path / "out", "mlx-lm")
    assert not (tmp_path / "out").exists()


# -- the commands of mlx-lm ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["large", "v1"])
def folder(request, tmp_path_factory):
    """A folder with a run, `out`, its export, and `data`, texts for `mlx_lm.lora`."""
    model, folder = families.read(KINDS[request.param]), tmp_path_factory.mktemp(request.param)
    run = saved_run(folder / "runs", model=model, params=letters(model))
    assert main(["convert", str(run.directory), f"{folder}/out", "--format", "mlx-lm"]) == 0
    (folder / "data").mkdir()
    for name in ("train", "valid"):
        lines = [json.dumps({"text": "abcdefghi " * count}) for count in range(4, 8)]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def mlx_lm(folder, *words):
    """The output of a command of mlx-lm, which must succeed."""
    # On a CPU MLX would compile kernels for a minute.
    environment = {"MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1"}
    done = python("-m", "mlx_lm", *words, "--trust-remote-code", cwd=folder, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generated(folder, model, *words):
    how = ("--ignore-chat-template", "--temp", "0", "--prompt", "abc", "--max-tokens", "64")
    text = mlx_lm(folder, "generate", "--model", model, *how, *words)
    return text.split("==========\n")[1].removesuffix("\n")


def ours(capsys, folder, prompt):
    how = ("--temperature=0", "--max-tokens=64", "--prompt", prompt)
    return command.told(capsys, "generate", f"{folder}/out", *how)["text"]


@pytest.mark.slow
def test_mlx_lm_generate_writes_what_mlxhog_generate_writes(folder, capsys):
    text = generated(folder, "out")
    assert len(text) == 64
    assert text == ours(capsys, folder, "abc")


@pytest.mark.slow
def test_mlx_lm_convert_quantizes_an_export_that_generates(folder):
    mlx_lm(folder, "convert", "--hf-path", "out", "--mlx-path", "quantized", "-q")
    names = mx.load(str(folder / "quantized" / "model.safetensors"))
    assert any(name.endswith(".scales") for name in names)
    assert len(generated(folder, "quantized")) == 64
    with pytest.raises(CheckpointError) as error:
        formats.open(folder / "quantized")
    (words,) = re.findall("python -m mlx_lm (.*)", str(error.value))
    mlx_lm(folder, *words.replace("NEW", "whole").split())
    assert formats.open(folder / "whole").config == formats.open(folder / "out").config


@pytest.mark.slow
def test_mlx_lm_lora_adapts_the_layers_that_our_adapters_have_by_default(folder, capsys):
    how = "--num-layers 2 --iters 3 --batch-size 2 --val-batches 1 --learning-rate 1e-2"
    words = ("--train", "--data", "data", "--adapter-path", "adapter", "--model", f"{folder}/out")
    mlx_lm(folder, "lora", *words, *how.split())
    theirs = mx.load(str(folder / "adapter" / "adapters.safetensors"))
    model = replace(formats.open(folder / "out").config, adapter=LoRA(rank=8))
    stems = {name.removesuffix(A) for name in model.layout.spec if name.endswith(A)}
    assert theirs.keys() == {stem + end for stem in stems for end in (".lora_a", ".lora_b")}
    assert all(mx.any(theirs[f"{stem}.lora_b"] != 0).item() for stem in stems)
    assert generated(folder, "out", "--adapter-path", "adapter") != ours(capsys, folder, "abc")
    model, _ = load_model(folder / "out", trust_remote_code=True)
    logits = load_adapters(model, folder / "adapter").eval()(mx.array(TOKENS))
    opened = formats.open(folder / "adapter")
    expected, _ = lm_float64.logits(opened.config, opened.tensors, TOKENS)
    assert_close(np.array(logits) / 30, expected / 30, LOGITS_F32)  # the head of `letters` is large


@pytest.mark.slow
def test_mlx_lm_server_batches_requests_of_any_length(folder, capsys):
    prompts = ("abcdefabc", "fgb", "g" * 70, "ea")  # no prompt begins with another
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ("server", "--model", "out", "--port", str(port), "--trust-remote-code")
    with (
        open(folder / "server.log", "wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlx_lm", *words], cwd=folder, stdout=log, stderr=log
        ) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ThreadPoolExecutor(len(prompts)) as pool,
    ):
        try:
            while server.poll() is None:
                with suppress(httpx.TransportError):
                    if client.get("/health").is_success:
                        break

            def text(prompt):
                body = {"prompt": prompt, "max_tokens": 64, "temperature": 0}
                return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

            texts = list(pool.map(text, prompts))
        finally:
            server.kill()
    assert texts == [ours(capsys, folder, prompt) for prompt in prompts]
