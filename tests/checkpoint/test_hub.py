"""Models by their names on the hub: what is downloaded, how it is named, how it is refused."""

import errno
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from mlxhog.base import mapped, tensors
from mlxhog.checkpoint import formats, hub
from mlxhog.checkpoint.checkpoint import find, locate
from mlxhog.checkpoint.formats import mlx_lm_adapter, peft
from mlxhog.checkpoint.run import Run
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks
from mlxhog.models import checkpoint_names, families
from mlxhog.models.adapters import LoRA
from tests.cli.command import refused, said, told
from tests.saved import SMALL, write_adapter
from tests.small_disk import filled, small_disk
from tests.stand_in_hub import (
    CACHE,
    COMMIT,
    FIXTURE,
    StandInHub,
    blob,
    files_of,
    in_cache,
    serving,
    small_model,
)

NAME = f"hf:{FIXTURE}"


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which no test can leave for the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    use(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "cache"


def use(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)


@pytest.fixture
def stand_in(cache, monkeypatch, model):
    """A hub with one model beside files that nobody needs."""
    here = StandInHub()
    others = {"pytorch_model.bin": b"x" * 9, "README.md": b"# A", "code.py": b"1", "a/b.bin": b"2"}
    here.repos[FIXTURE] = model | others
    with serving(here) as address:
        use(monkeypatch, address)
        yield here


def stored(cache):
    """Names of the files in the cache of a model, its blobs apart."""
    return sorted(path.name for path in cache.rglob("snapshots/*/*"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:A/b-1.2", ("A/b-1.2", "", "main")),
        ("hf:A/b/c/d@refs/pr/1", ("A/b", "c/d", "refs/pr/1")),
        (f"hf:A/b/@{COMMIT}", ("A/b", "", COMMIT)),
    ],
)
def test_a_name_has_a_repository_and_may_have_a_folder_and_a_revision(text, parts):
    assert hub.parse(text) == parts


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:/a", "hf:a/../b", "hf:a/b@", "hf:a/b@x y"])
def test_another_text_is_refused_with_the_form_of_a_name(text, cache):
    with pytest.raises(ConfigError, match="hf:OWNER/NAME"):
        find(text, Path())


def test_config_safetensors_and_tokenizer_are_downloaded_once_and_open_as_a_checkpoint(
    stand_in, cache, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)  # a local folder is never meant
    run, path = find(NAME, tmp_path)
    assert run is None
    assert stored(cache) == sorted(model.keys() - {"generation_config.json"})
    assert "license mit" in capsys.readouterr().err
    opened = formats.open(path)
    assert opened.title == NAME
    assert hub.name_of(path) == f"{NAME}@{COMMIT}"
    assert all(map(mapped.is_mapped, opened.tensors.values()))
    assert opened.text_tokenizer().bos == 256
    whole = len([one for one in stand_in.asked if one[0] == "GET" and "resolve" in one[1]])
    assert whole == len(stored(cache))
    before = len(stand_in.asked)
    assert locate(f"{NAME}@{COMMIT}", tmp_path) == path  # asks nobody
    assert len(stand_in.asked) == before
    assert locate(NAME, tmp_path) == path  # asks for the newest commit alone
    assert [one for one in stand_in.asked[before:] if one[0] == "GET"] == [
        ("GET", f"/api/models/{FIXTURE}/revision/main?blobs=true")
    ]


def test_a_subfolder_is_a_model_of_its_own_and_the_token_is_sent(
    stand_in, cache, model, monkeypatch
):
    stand_in.repos[FIXTURE] = {f"deep/{name}": content for name, content in model.items()}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = hub.fetch(f"{NAME}/deep@main")
    assert hub.title(path) == f"{NAME}/deep"
    assert formats.open(path).config.hidden_size == SMALL.hidden_size
    assert {*stand_in.tokens} == {"Bearer hf_secret"}
    with pytest.raises(CheckpointError, match="has no weights"):
        hub.fetch(NAME)


def test_shards_of_an_index_are_downloaded_without_other_safetensors(stand_in, model):
    files = stand_in.repos[FIXTURE]
    names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    shards = dict(zip(names, halves(files.pop("model.safetensors")), strict=True))
    where = {key: name for name in names for key in keys(shards[name])}
    index = json.dumps({"weight_map": where}).encode()
    files |= shards | {"model.safetensors.index.json": index, "consolidated.safetensors": b"x"}
    path = hub.fetch(NAME)
    assert not (path / "consolidated.safetensors").exists()
    assert formats.open(path).tensors.keys() == families.param_spec(SMALL).keys()


def written(arrays):
    """The bytes of safetensors, of bfloat16."""
    path = Path(os.environ["XDG_CACHE_HOME"]) / "one.safetensors"
    for _ in tensors.write_each(path, arrays, mapped.BFLOAT16):
        pass
    return path.read_bytes()


def read(content):
    path = Path(os.environ["XDG_CACHE_HOME"]) / "other.safetensors"
    path.write_bytes(content)
    return {name: np.array(array) for name, array in tensors.read(path).items()}


def keys(content):
    return read(content).keys()


def halves(content):
    arrays = sorted(read(content).items())
    middle = len(arrays) // 2
    return written(dict(arrays[:middle])), written(dict(arrays[middle:]))


@pytest.mark.slow
def test_a_scaling_law_checkpoint_has_its_tensors_width_and_the_tokenizer_of_xlstm_7b(
    cache, model, monkeypatch, capsys, tmp_path
):
    wide = families.read({**SMALL.to_dict(), "vocab_size": 50_304, "ffn_proj_factor": 4.1})
    assert wide.ffn_dim == 192
    arrays = checkpoint_names.to_xlstm(families.init_params(wide, 0), wide)
    shards = halves(written(arrays))
    config = {"embedding_dim": 32, "num_blocks": 2, "num_heads": 2, "vocab_size": 50_304}
    files = {f"model_{k}.safetensors": shard for k, shard in enumerate(shards)}
    path = in_cache(cache, "NX-AI/laws", files | {"config.json": json.dumps(config).encode()})
    tokenizer = {name: model[name] for name in ("tokenizer.json", "tokenizer_config.json")}
    in_cache(cache, "NX-AI/xLSTM-7b", tokenizer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    opened = formats.open(path)
    assert opened.config.ffn_dim == 192
    monkeypatch.chdir(tmp_path)
    result = told(capsys, "generate", "hf:NX-AI/laws", "--prompt", "ab", "--max-new-tokens=4")
    assert result["tokens"] == 4
    said(capsys, "convert", "hf:NX-AI/laws", "out", "--format", "hf")
    assert formats.open("out").config.ffn_dim == 192
    assert Path("out/tokenizer.json").read_bytes() == model["tokenizer.json"]


# -- refusals ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_large_download_shows_license_and_size_and_needs_consent(
    stand_in, cache, monkeypatch, capsys
):
    monkeypatch.setattr(hub, "require_space", lambda *_: None)
    stand_in.sizes = {"model.safetensors": 27 * 10**9}
    stand_in.card = {"license": "other", "license_name": "nx-ai"}
    about = f"{NAME}: 27 GB to download, license nx-ai"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    refused(capsys, f"{about}; add --yes to download it", "generate", NAME)
    assert not cache.exists()
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    with pytest.raises(ConfigError, match="was not downloaded"):
        hub.fetch(NAME)
    assert sys.stderr.getvalue() == f"{about}; download it? [y/N] "
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    hub.fetch(NAME)
    assert stored(cache)


def test_yes_is_consent(stand_in, cache, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hub, "LARGE_BYTES", 10)
    monkeypatch.chdir(tmp_path)
    said(capsys, "generate", NAME, "--yes", "--max-new-tokens=2")
    assert stored(cache)


def test_a_disk_that_is_too_small_is_refused_before_the_download(stand_in, cache, capsys):
    stand_in.sizes = {"model.safetensors": 10**18}
    refused(capsys, "bytes on the disk of", "generate", NAME, "--yes", code=3)
    assert not cache.exists()


def _gated(here):
    here.gated = True


def _missing(here):
    here.repos.clear()


def _pickles(here):
    here.repos[FIXTURE] = {"config.json": b"{}", "pytorch_model.bin": b"x"}


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (_gated, NAME, "is gated: accept its terms at"),
        (_missing, NAME, "there is no model LOCAL/FIXTURE on the hub, or it is private"),
        (_pickles, NAME, "has only pytorch_model.bin, and only safetensors are downloaded"),
        (lambda here: None, f"{NAME}@other", "has no revision 'other'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(
    change, name, message, stand_in, cache, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    change(stand_in)
    for words in (("generate",), ("serve",), ("eval",), ("parity",), ("chat",)):
        refused(capsys, message, *words, name)
    refused(capsys, message, "convert", name, "out", "--format", "hf")
    refused(capsys, message, "train", "--init-from", name)
    assert not cache.exists()
    assert not Path("runs").exists()


def test_without_a_network_the_cache_serves_a_whole_copy_and_says_so(
    cache, model, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "cannot be downloaded", "generate", NAME, code=3)
    assert not cache.exists()
    in_cache(cache, FIXTURE, model)
    assert "is the copy in the cache" in said(capsys, "generate", NAME, "--max-new-tokens=2").err
    weights = cache / f"models--LOCAL--FIXTURE/snapshots/{COMMIT}/model.safetensors"
    weights.unlink()  # as after half a download
    refused(capsys, "run the command again", "generate", NAME, code=3)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(capsys, "or not whole, and HF_HUB_OFFLINE forbids", "generate", NAME, code=3)
    refused(capsys, "hf:LOCAL/OTHER is not in the cache", "generate", "hf:LOCAL/OTHER", code=3)


@pytest.mark.slow
def test_half_a_download_keeps_whole_files_and_the_next_one_gets_the_rest(
    stand_in, cache, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    stand_in.cut_at = 20_000  # of the weights, and never more
    refused(capsys, "cannot be downloaded", "generate", NAME, code=3)
    assert "model.safetensors" not in stored(cache)
    assert "config.json" in stored(cache)
    assert not list(cache.rglob("*.incomplete"))
    stand_in.cut_at, before = None, len(stand_in.asked)
    said(capsys, "generate", NAME, "--max-new-tokens=2")
    got = [path for method, path in stand_in.asked[before:] if method == "GET"]
    assert [path.rpartition("/")[2] for path in got[1:]] == ["model.safetensors"]


def test_a_disk_that_becomes_full_leaves_only_whole_files(
    stand_in, cache, capsys, monkeypatch, model
):
    cache.mkdir()
    with small_disk(cache, 4 << 20) as mounted:
        if not mounted:
            pytest.skip("this process may not mount a small disk")
        rest = []

        def fill():
            rest.append(filled(cache))
            rest[0].__enter__()

        stand_in.cut_at, stand_in.before_cut = 20_000, fill
        refused(capsys, f"the disk became full while downloading {NAME}", "generate", NAME, code=3)
        rest[0].__exit__(None, None, None)
        assert "model.safetensors" not in stored(cache)
        assert not list(cache.rglob("*.incomplete"))


# -- names in what is written ----------------------------------------------------------------------


@pytest.fixture
def fixture(monkeypatch, tmp_path):
    """The cache of this repository, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(CACHE))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def test_the_fixture_is_what_its_program_writes(model):
    path = CACHE / "models--LOCAL--FIXTURE"
    assert files_of(path / "snapshots" / COMMIT) == model
    assert {one.name for one in (path / "blobs").iterdir()} == {*map(blob, model.values())}


def test_a_converted_model_keeps_its_name(fixture, capsys):
    assert told(capsys, "convert", NAME, "out", "--format", "mlxhog")["source"] == NAME
    card = Path("out/README.md").read_text()
    assert 'base_model: "LOCAL/FIXTURE"' in card
    assert str(CACHE) not in card
    assert COMMIT not in card
    out, err = said(capsys, "generate", NAME, "--prompt", "The", "--max-new-tokens=4")
    assert out.startswith("The")
    assert f"weights of checkpoint {NAME}\n" in err
    assert told(capsys, "eval", NAME, "--data", "out/README.md")["checkpoint"] == NAME


@pytest.mark.slow
def test_a_run_names_the_commit_of_its_first_weights_and_refuses_another_vocabulary(
    fixture, capsys
):
    words = ("train", "--init-from", NAME, "--steps=2", "--workers=torch:cpu", "--seq-len=4")
    text = Path("text.txt")
    text.write_text("abcde\n" * 4000)
    run = Run(Path(told(capsys, *words, "--data", text)["run"]))
    assert f"init_from: {NAME}@{COMMIT}" in run.config_path.read_text()
    assert run.read_status()["model"] == NAME
    assert 'base_model: "LOCAL/FIXTURE"' in (run.model / "README.md").read_text()
    others = [path for path in run.directory.rglob("*.*") if path.suffix in (".json", ".jsonl")]
    assert not [path for path in others if str(CACHE) in path.read_text()]
    refused(
        capsys,
        f"{NAME} was trained with tokenizer bytes",
        *(*words, "--data", text, "--tokenizer", "sotu", "--quiet"),
    )


def test_a_missing_package_is_named_with_its_installation(fixture, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(capsys, "needs huggingface_hub, which is not installed", "generate", NAME, code=3)


def test_errors_of_the_disk_have_their_own_sentence(stand_in, cache, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    refused(capsys, f"the disk became full while downloading {NAME}", "generate", NAME, code=3)


@pytest.mark.parametrize("words", [("train", "--resume"), ("show",)])
def test_commands_on_runs_refuse_it_with_the_way_to_begin_one(words, fixture, capsys):
    refused(capsys, f"mlxhog train --init-from {NAME}", *words, NAME)


@pytest.mark.parametrize("by", ["peft", "a run"])
def test_an_adapter_on_the_hub_is_opened_with_its_base_there(by, stand_in, cache, tmp_path):
    model = replace(SMALL, adapter=LoRA(rank=2))
    (tmp_path / "adapter").mkdir()
    base = f"hf:{FIXTURE}@{COMMIT}"
    write_adapter(tmp_path / "adapter", model, families.init_params(model, 0), base=base)
    others = {"README.md": b"# A", "optimizer.pt": b"x"}
    if by == "a run":  # the checkpoint as its card says how to upload it
        others |= {"config.json": b"{}", "optimizer.safetensors": b"x", "state.json": b"{}"}
    stand_in.repos["ME/notes"] = files_of(tmp_path / "adapter") | others
    opened = formats.open(locate("hf:ME/notes", tmp_path))
    assert opened.config.adapter is not None
    assert (opened.title, opened.base.title) == ("hf:ME/notes", f"hf:{FIXTURE}")
    assert opened.base_name == base
    (notes,) = cache.glob("models--ME--notes/snapshots/*")
    assert sorted(path.name for path in notes.iterdir()) == [peft.CONFIG, peft.MODEL]
    stand_in.repos.clear()  # both are in the cache now
    assert formats.open(locate(f"hf:ME/notes@{COMMIT}", tmp_path)).base_name == base


@pytest.mark.parametrize("missing", [peft.CONFIG, peft.MODEL])
def test_half_an_adapter_in_the_cache_is_not_taken_for_a_model(
    missing, stand_in, cache, tmp_path, monkeypatch
):
    files = dict.fromkeys(("config.json", peft.CONFIG, peft.MODEL, "optimizer.safetensors"), b"{}")
    stand_in.repos["ME/notes"] = dict(files)
    del files[missing]
    path = in_cache(cache, "ME/notes", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentLacks, match="or not whole"):
        hub.fetch("hf:ME/notes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.fetch("hf:ME/notes") == path
    assert (path / missing).is_file()


def test_only_the_last_weights_of_an_adapter_of_mlx_lm_are_downloaded_and_serve_without_a_network(
    stand_in, tmp_path, monkeypatch
):
    names = (peft.CONFIG, mlx_lm_adapter.MODEL, "0000100_adapters.safetensors")
    stand_in.repos["ME/notes"] = dict.fromkeys(names, b"{}")
    path = hub.fetch("hf:ME/notes")
    assert {one.name for one in path.iterdir()} == {peft.CONFIG, mlx_lm_adapter.MODEL}
    others = in_cache(tmp_path / "cache", "ME/others", stand_in.repos["ME/notes"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("hf:ME/notes") == path
    assert hub.fetch("hf:ME/others") == others  # with those of step 100, by another program


def test_an_adapter_on_the_hub_that_is_a_pickle_is_refused(stand_in, tmp_path):
    stand_in.repos["ME/notes"] = {peft.CONFIG: b"{}", peft.PICKLE: b"x"}
    with pytest.raises(CheckpointError, match="has only adapter_model.bin, and only safetensors"):
        locate("hf:ME/notes", tmp_path)
