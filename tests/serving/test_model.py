"""What `mlxhog.load` returns: text, logits and scores of a model, wherever it lies."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mlxhog import backends, errors, evaluate, load
from mlxhog.base import machine
from mlxhog.base.workers import resolve_workers
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint.base_model import BaseModel
from mlxhog.data import validation_set
from mlxhog.data.tokenizers import train_bpe
from mlxhog.decoding import scoring
from mlxhog.decoding.options import Sampling
from mlxhog.models import families, lm
from mlxhog.models.adapters import LoRA
from tests.checkpoint.formats import peers
from tests.cli.command import refused, said, told
from tests.odd_disk import held_elsewhere
from tests.pairs import each_of
from tests.saved import SMALL, save, saved_run
from tests.tolerances import LOGITS_F32, assert_close


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with a checkpoint of a tiny model that has learned nothing."""
    return saved_run(tmp_path_factory.mktemp("loaded") / "runs", step=3)


@pytest.fixture(scope="module")
def model(saved):
    with load(saved.directory, backend="mlx:cpu") as result:
        yield result


def test_generate_returns_what_the_command_writes_and_a_stream_its_pieces(model, saved, capsys):
    options = {"max_new_tokens": 60, "temperature": 0.9, "top_k": 20, "seed": 4}
    text = model.generate("The ", **options)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    words = ["generate", str(saved.directory), "--prompt=The ", "--backend=mlx"]
    for more, expected in ((flags, text), ([], model.generate("The "))):
        assert told(capsys, *words, *more)["text"] == expected
    assert model.generate("The ", **options | {"seed": 5}) != text
    pieces = list(model.stream("The ", **options))
    assert len(pieces) > 1
    assert "".join(pieces) == text
    stop = text[7:9]
    assert model.generate("The ", **options, stop=stop) == text[: text.index(stop)]


def test_a_program_that_loads_a_model_keeps_its_own_threads_of_torch(saved, monkeypatch):
    (worker,) = resolve_workers("torch:cpu", machine=machine.here()).workers
    before, real, inside = torch.get_num_threads(), lm.logits, []

    def logits(*args, **how):
        inside.append(torch.get_num_threads())
        return real(*args, **how)

    monkeypatch.setattr(lm, "logits", logits)
    torch.set_num_threads(worker.threads + 1)
    try:
        with load(saved.directory, backend="torch:cpu") as model:
            model.logits([256, 1, 2])
            assert (inside, torch.get_num_threads()) == ([worker.threads], worker.threads + 1)
    finally:
        torch.set_num_threads(before)


def test_score_is_the_cross_entropy_of_a_document_in_bits_per_byte(model, monkeypatch):
    text = "Häuser ☃ of the States"
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    logits = model.logits([256, *ids[:-1]]).astype(np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids)), ids]
    expected = nats.sum() / math.log(2) / len(text.encode())
    assert model.score(text) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(scoring, "SCORED_TOKENS", 7)  # with the state from piece to piece
    assert model.score(text) == pytest.approx(expected, rel=1e-5)


def test_an_adapter_of_a_run_is_read_beside_its_base_as_the_run_held_it(tmp_path):
    base = formats.open(saved_run(tmp_path / "runs", "base").model.resolve())
    cfg, run = replace(SMALL, adapter=LoRA(rank=2)), saved_run(tmp_path / "runs", "own")
    params = families.init_params(cfg, 1) | dict(base.tensors)
    own = {name: params[name] for name in families.trainable_spec(cfg)}
    backend, ids = backends.create("torch:cpu", threads=1, kernels="auto"), np.arange(9)
    for asked, of_run, held in (
        ("float32", "4bit", "4bit"), ("8bit", "4bit", "8bit"), ("float32", "keep", "float32"),
    ):  # fmt: skip
        save(run, cfg, own, step=1, base=BaseModel.of(base, of_run))
        backend.load(cfg, params, weights=held)
        with load(run.directory, backend="torch:cpu", weights=asked) as model:
            assert model.follower.source.weights == held
            assert np.array_equal(model.logits(ids), backend.all_logits(ids[None], None)[0][0])


def test_a_short_text_is_not_padded_to_a_long_sequence(saved, tmp_path, monkeypatch):
    shutil.copytree(checkpoint.latest(saved), tmp_path / "model")
    (tmp_path / "letter.txt").write_text("Never wait. " * 20)
    widths, batches = [], validation_set.batches

    def seen(*args, **how):
        for batch in batches(*args, **how):
            widths.append(batch.x.shape[1])
            yield batch

    monkeypatch.setattr(validation_set, "batches", seen)
    short, long = (
        evaluate(tmp_path / "model", tmp_path / "letter.txt", seq_len=n, backend="torch:cpu")
        for n in (300, 9000)
    )
    assert widths == [300, scoring.SCORED_TOKENS]
    assert long.bits_per_byte == pytest.approx(short.bits_per_byte, rel=1e-5)


def loads(**how):
    return lambda model, saved: load(saved.directory, **how)


@each_of(
    ("call", "message"),
    [
        (loads(backend="cuda"), "no backend 'cuda'; choose from auto, torch, mlx"),
        (loads(backend="mlx:cpuu"), "did you mean 'mlx:cpu'"),
        (loads(weights="5bit"), "weights are '5bit'; choose one of"),
        (loads(mode="newest"), "no read mode 'newest'"),
        (lambda m, _: m.generate("a", max_new_token=3), "did you mean 'max_new_tokens'"),
        (lambda m, _: m.stream("a", top_p="much"), "top_p is 'much'; wanted a number"),
        (lambda m, _: m.generate(b"a"), "the prompt is not a Unicode text .*bytes"),
        (lambda m, _: m.generate("a", stop=5), "stop is 5; wanted a text, or a list of texts"),
        (lambda m, _: m.generate("a\ud800"), "the prompt is not a Unicode text .*position 1"),
        (lambda m, _: m.logits([[1], [1, 2]]), "ids are sequences of different lengths"),
        (lambda m, _: m.logits([1.0, 2.0]), r"shape \(2,\) and type float64"),
        (lambda m, _: m.logits([]), r"shape \(0,\)"),
        (lambda m, _: m.logits([5, 320]), "token 320 at position 1"),
        (lambda m, _: m.logits([5, -(2**40)]), "token -1099511627776 at position 1"),
        (lambda m, _: m.score(""), "the text to score is empty"),
        (lambda m, _: m.score(3), "the text is not a Unicode text"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(model, saved, call, message):
    with pytest.raises(errors.MlxhogError, match=message):
        call(model, saved)


def test_of_a_run_that_another_host_trains_the_newest_checkpoint_is_read_and_said(tmp_path, capsys):
    run = saved_run(tmp_path / "runs", step=3)
    run.write_status({"status": "running"})
    held_elsewhere(run.directory)
    words = ("generate", run.directory, "--prompt=a", "--backend=mlx", "--max-new-tokens=2")
    note = f"run {run.name} trains in the memory of another, so its newest checkpoint is read"
    assert note in said(capsys, *words).err


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_model_whose_file_is_shortened_after_it_was_loaded_still_writes(saved, tmp_path, weights):
    folder = shutil.copytree(checkpoint.latest(saved), tmp_path / "a")
    with load(folder, backend="torch:cpu", weights=weights) as result:
        (folder / "model.safetensors").write_bytes(b"")  # in place, as `cp` does
        assert result.generate("The ", max_new_tokens=4, temperature=0)


def test_a_call_within_a_pinned_answer_leaves_it_its_weights(saved, monkeypatch):
    with load(saved.directory, backend="torch:cpu", mode="pinned_per_sequence") as model:
        source, loads = model.follower.source, []
        own = source.load
        monkeypatch.setattr(model.follower, "is_due", lambda: True)
        monkeypatch.setattr(source, "load", lambda backend: loads.append(1) or own(backend))
        answer = model.stream("a", max_new_tokens=9)
        next(answer)
        assert len(loads) == 1
        model.score("b")
        model.logits([1])
        model.generate("c", max_new_tokens=2)
        next(answer)
        assert len(loads) == 1
        del answer  # abandoned
        model.score("b")
        assert len(loads) == 2


def test_a_closed_model_says_so(saved):
    with load(saved.directory, backend="mlx") as model:
        begun, waiting = model.stream("a"), model.stream("a")
        next(begun)
    model.close()
    for call in (
        model.generate, lambda: model.logits([1]), lambda: model.score("a"),
        lambda: [*begun], lambda: [*waiting],
    ):  # fmt: skip
        with pytest.raises(errors.ConfigError, match="load it again"):
            call()


@pytest.fixture
def hf(tmp_path):
    """A directory of transformers with a vocabulary of its own, in bfloat16."""
    folder = tmp_path / "hf"
    tokenizer = train_bpe([b"the constitution of the united states " * 20], 300)
    torch.manual_seed(0)
    model = peers.transformers_model(vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.files()["tokenizer.json"])
    return folder


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_a_directory_of_transformers_writes_what_transformers_would(hf, backend):
    model = load(hf, backend=backend)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    ids = [model.tokenizer.bos, *model.tokenizer.encode(b"the states")]
    assert ids[0] == json.loads((hf / "config.json").read_text())["bos_token_id"]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), use_cache=False).logits[0]
    logits = model.logits(ids)
    assert logits.dtype == np.float32
    assert_close(logits, expected.numpy(), LOGITS_F32)
    both = model.logits(np.array([ids, ids[::-1]], np.uint16))
    assert both.shape == (2, *logits.shape)
    assert_close(both[0], logits, LOGITS_F32)


@pytest.mark.parametrize("as_list", [False, True])
def test_the_end_token_of_a_config_ends_the_answer(hf, as_list):
    def said():
        sampling = Sampling(temperature=0.0, max_new_tokens=8)
        return [one.token for one in load(hf, backend="torch").answer(["The "], sampling)]

    path = hf / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"eos_token_id": None}))
    whole = said()
    end = whole[3]
    path.write_text(json.dumps(fields | {"eos_token_id": [end, 0] if as_list else end}))
    assert said() == [*whole[: whole.index(end)], None]


def test_a_tokenizer_that_is_missing_or_larger_than_the_model_is_refused(hf, capsys):
    peers.transformers_model(vocab_size=50).save_pretrained(hf)
    refused(capsys, "copy the model's own tokenizer there", "generate", hf, "--prompt", "a")
    (hf / "tokenizer.json").unlink()
    no_tokenizer = "has no tokenizer.json, so no text can be read"
    refused(capsys, no_tokenizer, "generate", hf, "--prompt", "a")


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_numbers_that_are_not_finite_are_named_before_any_text(hf, backend, capsys):
    arrays = {name: a.copy() for name, a in load_file(hf / "model.safetensors").items()}
    arrays["backbone.out_norm.weight"][3] = np.inf
    save_file(arrays, hf / "model.safetensors")
    message = "backbone.out_norm.weight has numbers that are not finite"
    refused(capsys, message, "generate", hf, "--backend", backend)
