"""Adapters of one base: each is chosen by a request's `model`, and all share the base's weights."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import openai
import pytest

from mlxhog import backends, load
from mlxhog.checkpoint import formats
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families, ngrams
from mlxhog.models.adapters import LoRA, is_adapter
from mlxhog.serving.server.config import ServeConfig, adapters_of
from mlxhog.serving.server.served_model import ServedModel
from tests.saved import SMALL, letters, saved_run, write_adapter
from tests.serving.server.servers import MLX, serving
from tests.tolerances import LOGITS_F32, assert_close

SAVED = LoRA(rank=2, modules_to_save=("lm_head",))


def adapter(folder, base, seed, lora):
    """A folder with an adapter for a checkpoint."""
    folder.mkdir()
    opened = formats.open(base)
    model = replace(opened.config, adapter=lora)
    params = opened.tensors | families.init_params(model, seed)
    rng = np.random.default_rng(seed)
    for name in params:
        if is_adapter(name) or name.startswith(ngrams.TABLE):
            params[name] = rng.standard_normal(params[name].shape, np.float32)
    write_adapter(folder, model, params, base=base)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base, another base, and adapters for the first."""
    folder = tmp_path_factory.mktemp("adapters")
    runs = [
        saved_run(folder / "runs", name, params=params)
        for name, params in (("base", letters()), ("other", None))
    ]
    base, other = (run.model.resolve() for run in runs)
    adapter(folder / "notes", base, 1, LoRA(rank=3))
    adapter(folder / "code", base, 2, SAVED)
    adapter(folder / "foreign", other, 3, LoRA(rank=3))
    own = {name: folder / name for name in ("notes", "code", "foreign")}
    return {"base": base, "other": other, **own}


@pytest.fixture(scope="module")
def server(places):
    own = [f"--adapter={name}={places[name]}" for name in ("notes", "code")]
    with serving(places["base"], MLX, *own) as server:
        yield server


def ask(server, model, **how):
    how = {"prompt": "ab", "seed": 1, "max_tokens": 24, "temperature": 0.7} | how
    return server.openai().completions.create(model=model, **how)


def test_every_adapter_is_a_model_of_the_server(server):
    names = [model.id for model in server.openai().models.list().data]
    assert names == [server.model, "notes", "code"]
    assert server.openai().models.retrieve("code").parent == server.model
    assert server.told["adapters"] == ["notes", "code"]
    with pytest.raises(openai.NotFoundError, match="this server has .*'notes', 'code'"):
        ask(server, "notess")


def test_answers_at_one_time_are_those_of_each_model_alone(server, places):
    places = {server.model: places["base"], **{name: places[name] for name in ("notes", "code")}}
    expected = {}
    for name, path in places.items():
        with load(path, backend="mlx:cpu") as model:
            for n in (1, 2):
                how = {"temperature": 0.7, "seed": n, "max_new_tokens": 24}
                expected[name, n] = model.generate("ab", **how)
    assert len({expected[name, 1] for name in places}) == len(places)
    with ThreadPoolExecutor(len(expected)) as pool:
        jobs = {(name, n): pool.submit(partial(ask, server, name, seed=n)) for name, n in expected}
    for (name, n), job in jobs.items():
        answer = job.result()
        assert (answer.model, answer.choices[0].text) == (name, expected[name, n])
        weights = answer.model_extra["mlxhog"]
        assert weights["version_first"] == weights["version_last"]


def test_a_model_beside_an_adapter_shares_its_weights(places):
    base = formats.open(places["base"])
    first = backends.create("torch:cpu", threads=1, kernels="auto")
    first.load(base.config, base.tensors)
    opened = formats.open(places["notes"], base=base)
    second, faults = first.with_adapter(opened.config, opened.tensors)
    assert faults == []
    assert second.params.keys() - first.params.keys() == {*filter(is_adapter, second.params)}
    assert all(second.params[name] is value for name, value in first.params.items())


def test_a_model_beside_an_adapter_reads_the_tables_that_were_trained_with_it(tmp_path):
    model = replace(SMALL, ngram_orders=(2,), ngram_dim=4)
    path = saved_run(tmp_path / "runs", model=model).model.resolve()
    lora = LoRA(rank=2, modules_to_save=("ngrams",))
    opened = formats.open(adapter(tmp_path / "own", path, 1, lora))
    first, alone = (backends.create("torch:cpu", threads=1, kernels="auto") for _ in range(2))
    first.load(opened.base.config, opened.base.tensors)
    alone.load(opened.config, opened.tensors)
    second, faults = first.with_adapter(opened.config, opened.tensors)
    assert faults == []
    ids = np.array([[1, 5, 9, 5]], np.int32)
    (found, _), (expected, _) = (one.all_logits(ids, None) for one in (second, alone))
    assert_close(found, expected, LOGITS_F32)
    table = f"{ngrams.TABLE}2"
    assert not first.tables[table].any()
    nan = np.full_like(opened.tensors[table], np.nan)
    assert first.with_adapter(opened.config, opened.tensors | {table: nan})[1] == [table]


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_a_base_in_bfloat16_has_adapters_in_float32(places, backend):
    model = ServedModel(
        str(places["base"]),
        ServeConfig(adapter=(f"notes={places['notes']}",), backend=backend, weights="bfloat16"),
    )
    try:
        (own,) = (one._model for name, one in model._engines.items() if name == "notes")
        ids = np.array([[1, 5, 9]], np.int32)
        found, _ = model._thread.submit(own.all_logits, ids, None).result()
    finally:
        model.close()
    alone = backends.create("torch:cpu", threads=1, kernels="auto")
    opened = formats.open(places["notes"])
    alone.load(opened.config, opened.tensors)
    expected, _ = alone.all_logits(ids, None)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("own", "error", "says"),
    [
        ("{foreign}", CheckpointError, "is an adapter for another base model: it names .* write"),
        ("{other}", ConfigError, "is a whole model, not an adapter; serve it by itself"),
        ("{nothing}", ConfigError, "neither a checkpoint nor a run"),
    ],
)
def test_what_is_no_adapter_for_the_base_is_refused_at_the_start(places, own, error, says):
    path = own.format(**places, nothing=places["base"].parent)
    with pytest.raises((error, CheckpointError), match=says):
        ServedModel(str(places["base"]), ServeConfig(adapter=(f"x={path}",), backend="torch:cpu"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("notes",), "write NAME=PATH"),
        (("=notes",), "write NAME=PATH"),
        (("a=x", "a=y"), "a is x; choose another name"),
    ],
)
def test_an_adapter_is_given_with_a_name_of_its_own(given, says):
    with pytest.raises(ConfigError, match=says):
        adapters_of(ServeConfig(adapter=given))


def test_an_adapter_cannot_have_the_name_of_its_base(places):
    own = f"{places['base'].parents[1].name}={places['notes']}"
    with pytest.raises(ConfigError, match="the model itself is .*; rename it"):
        ServedModel(str(places["base"]), ServeConfig(adapter=(own,), backend="torch:cpu"))


def test_a_copy_of_the_base_takes_its_adapters(places, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json"):
        (copy / name).write_bytes((places["base"] / name).read_bytes())
    opened = formats.open(places["notes"], base=formats.open(copy))
    assert opened.base.path == copy
