"""Wrong input of `mlxhog mad` is one message with the way out, and nothing is written."""

import shlex
from pathlib import Path

import pytest

from mlxhog.cli import main
from tests.mad.report.sample import TASKS, study
from tests.mad.study import small
from tests.pairs import each_of

CASES = [
    # -- train
    ("train", "give the candidate"),
    ("train --layers swiglu --steps 5 --epochs 5", "steps and epochs are both given"),
    (
        "train --layers swiglu --train-rows 9",
        "a setting of the task is given as in --task-set vocab=32",
    ),
    ("train --layers mlp --schedule constant --min-lr 1", "is for schedule=cosine, not con"),
    ("train --layers mlp --write racy", "so write=racy would not be used; give it several"),
    ("train --layers mlp --read live --dry-run", "so read=live would not be used; give it sev"),
    # -- data
    ("data --task CR --output no/a.npz", "name a file in a directory"),
    # -- show, consensus and deepen
    ("show tiny", "not a sequence of MAD layers"),
    ("deepen 'mlstm swiglu' --depth 8 --output d.txt", "name a YAML file"),
    ("deepen secnd --depth 8 --output d.yaml", "'secnd' is neither a study"),
    # -- board
    ("leaderboard frist", "did you mean 'first'"),
    # -- search, bench and resume
    ("search --space a.yaml", "the file has no 'dim'; known are space"),
    ("search --seeds 1,1", "--seeds is '1,1'; give a number"),
    ("search --seeds 54321 --budget soon", "at most 1000 seeds; for one seed write 54321,"),
    ("search --studies-dir ''", "--studies-dir is ''; wanted a path"),
    ("search --budget soon", "--budget is 'soon'; wanted candidates, a duration"),
    ("search --budget 0", "--budget is '0'; wanted candidates, a duration"),
    ("search --ray-address auto", "without --executor ray"),
    ("search --executor ray --ray-address auto", "needs --parallel"),
    ("search --share-embedding --executor ray", "one table in this machine's memory"),
    ("search --share-embedding --workers mlx:cpu,torch:cpu", "for candidates of one worker"),
    ("search --share-embedding --optimizer soap", "moments of the table's shape"),
    ("bench", "give an architecture, as in mlxhog mad bench --layers"),
    (
        "bench --layers gated-conv --suite recall --dim 128",
        "on multi-query-associative-recall: 64 and 32, 16; leave the width",
    ),
    ("bench --config eps.yaml --tasks M", "eps.yaml has norm_eps 0.01, candidates are compared"),
    ("train --arch eps.yaml --task M", "eps.yaml has norm_eps 0.01, candidates are compared"),
    ("bench --layers swiglu --rates 1e-3,1e-3", "each larger than the one before"),
    ("train --layers mlstm --task dyck --position learned", "scores rows of 2048: no row trains"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a study, a space and some files of architectures."""
    root = tmp_path_factory.mktemp("refused")
    study(root / "studies", tasks=TASKS[:1])
    Path(small.space(root)).rename(root / "space-of-two.yaml")
    learned = "{dim: 16, max_length: 64, position: learned, layers: mlstm swiglu}"
    (root / "a.yaml").write_text(learned)
    (root / "eps.yaml").write_text("{model_type: mad, norm_eps: 1e-2, layers: gated-conv swiglu}")
    return root


@each_of(("words", "message"), CASES)
def test_wrong_input_is_one_message_and_costs_nothing(words, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(["mad", *shlex.split(words, comments=False)]) == 2
    out, err = capsys.readouterr()
    assert message in " ".join(err.split())
    assert out == ""
    assert "pickle" not in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("no_apple_gpu")
def test_what_this_machine_lacks_is_named_with_exit_code_3(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["mad", "search", "--backend", "torch:mps"]) == 3
    assert "torch:mps needs macOS" in capsys.readouterr().err
    assert main("mad data --task CR --task-set train_rows=999999999999 --output a.npz".split()) == 3
    err = capsys.readouterr().err
    assert err.startswith("the memory is used up: ")
    assert err.endswith("; ask for smaller sizes\n")
