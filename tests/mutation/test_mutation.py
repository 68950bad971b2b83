"""The sampler of mutants, what becomes of them, and how two records are compared."""

import ast
import json

import pytest

from tests.mutation import __main__ as mutation
from tests.mutation.__main__ import ROOT, SOURCES, listed, main
from tests.mutation.mutants import mutants, sample

TEXT = '''\
"""Grüße."""

def half(x: int = 2, *, is_new=True) -> int:
    assert x < 9
    if x < 3 and is_new:
        x += 1
    text = f"{x + 1}"
    print(text); log.write("é", x * 2)
    raise ValueError("x is {x}, expected 1")
'''


def test_faults_have_every_kind_and_leave_messages_annotations_and_assertions_alone():
    kinds = {(mutant.kind, mutant.old, mutant.new) for mutant in mutants("a.py", TEXT)}
    assert kinds == {
        ("constant", "2", "3"), ("constant", "True", "False"), ("constant", "3", "4"),
        ("constant", "1", "2"), ("comparison", "x < 3", "(x >= 3)"),
        ("boundary", "x < 3", "(x <= 3)"), ("branch", "x < 3 and is_new", "(x < 3 or is_new)"),
        ("branch", "x < 3 and is_new", "(not (x < 3 and is_new))"),
        ("dropped", "x += 1", "pass"), ("dropped", "print(text)", "pass"),
        ("dropped", 'log.write("é", x * 2)', "pass"), ("arithmetic", "x * 2", "(x / 2)"),
        ("dropped", 'raise ValueError("x is {x}, expected 1")', "pass"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def product():
    files = [name for name in listed(ROOT) if name.split("/")[0] in SOURCES and name[-3:] == ".py"]
    return files[::3]


@pytest.mark.slow
def test_every_mutant_parses_and_differs_and_fewer_are_the_first_of_more(product):
    chosen = sample(ROOT, product, seed=0, n=300)
    assert len({mutant.label for mutant in chosen}) == 300
    for mutant in chosen:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(mutant.applied(text))) != ast.dump(ast.parse(text)), mutant.label
    assert sample(ROOT, product, seed=0, n=40) == chosen[:40]
    assert sample(ROOT, product, seed=1, n=40) != chosen[:40]
    folders = [mutant.folder for mutant in chosen]
    assert set(folders) >= {"mlxhog/arena", "mlxhog/training", "models", "metal"}
    assert folders.count("mlxhog/mad") <= folders.count("mlxhog/nn") + 1


@pytest.mark.slow
def test_a_copy_runs_its_own_product_and_pytest_decides_what_became_of_a_mutant():
    with mutation.scratch_copy(listed(ROOT)) as (copy, environment):
        with (copy / "mlxhog" / "errors.py").open("a") as file:
            file.write("IS_COPY = True\n")

        def fate(statement, limit_s=200):
            test = f"import mlxhog.errors\n{statement}\ndef test_it():\n    assert is_true\n"
            (copy / "tests" / "test_it.py").write_text(test)
            return mutation.fate_of(["tests/test_it.py"], copy, environment, limit_s)[0]

        assert fate("is_true = mlxhog.errors.IS_COPY") == "survived"
        assert fate("is_true = False") == "killed"
        assert fate("import nothing_like_it") == "invalid"
        assert fate("is_true = True", limit_s=0) == "timeout"


def record(tmp_path, name, **folders):
    fates = {"k": "killed", "t": "timeout", "s": "survived", "i": "invalid"}
    entries = {
        f"{folder} {k}": {"folder": folder, "fate": fates[letter]}
        for folder, letters in folders.items()
        for k, letter in enumerate(letters)
    }
    (tmp_path / name).write_text(json.dumps({"folders": mutation.by_folder(entries)}))
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("after", "code", "word"),
    [
        ({"arena": "k" * 16 + "tttsi", "optim": "ks"}, 0, ""),
        ({"arena": "k" * 9 + "s" * 11 + "i", "optim": "ks"}, 1, "weaker"),
        ({"arena": "k" * 16 + "s" * 4, "optim": "kk"}, 0, "inconclusive"),
        ({"arena": "k" * 18 + "ss", "nn": "kkkk"}, 0, ""),
        ({"nn": "ssss"}, 1, "weaker"),
    ],
)
def test_a_folder_that_surely_kills_less_fails_the_comparison(
    tmp_path, monkeypatch, capsys, after, code, word
):
    before = record(tmp_path, "a", arena="k" * 19 + "s", optim="ks")
    argv = ["mutation", "--compare", before, record(tmp_path, "b", **after)]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == code
    shown = capsys.readouterr().out
    assert word in shown
    assert ("weaker" in shown) == bool(code)
