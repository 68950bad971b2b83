"""`--save` and `mlxhog classic predict`: a problem that was solved answers for another file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxhog.classic import model as models
from mlxhog.cli import main
from mlxhog.errors import DataError

ONE = ["--workers", "1", "--no-serial"]


def rows(path: Path, n: int, seed: int, words: tuple[str, str] = ("-1", "+1")) -> Path:
    """svmlight rows of ten features whose sum with fixed weights says the label."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n, 10))
    signs = values @ np.linspace(-1, 1, 10) > 0
    lines = (
        f"{words[int(sign)]} " + " ".join(f"{k}:{x:.5f}" for k, x in enumerate(row, start=1))
        for sign, row in zip(signs, values, strict=True)
    )
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def solved(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main(["classic", *map(str, words), *ONE, "--json"]) == 0
    output: dict[str, Any] = json.loads(capsys.readouterr().out)
    return output


def predicted(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert main(["classic", "predict", *map(str, words), "--json"]) == 0
    output: dict[str, Any] = json.loads(capsys.readouterr().out)
    return output


@pytest.mark.parametrize("problem", ["svm", "logistic"])
def test_the_accuracy_on_the_test_file_is_that_of_the_training(problem, tmp_path, capsys):
    train, test = rows(tmp_path / "train.svm", 400, 0), rows(tmp_path / "test.svm", 100, 1)
    file, out = tmp_path / "weights.safetensors", tmp_path / "out.txt"
    how = ["--data", train, "--test-data", test, "--save", file]
    trained = solved(capsys, problem, *how)
    prediction = predicted(capsys, file, test, "--out", out)
    assert prediction["examples"] == 100
    assert prediction["measure"] == "accuracy"
    assert prediction["value"] == pytest.approx(1 - trained["measures"]["test_error"], abs=1e-12)
    assert prediction["value"] == pytest.approx(prediction["trained"], abs=1e-12)
    assert prediction["value"] > 0.8
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert len(lines) == 100
    truth = [int(line.split()[0]) for line in test.read_text().splitlines()]
    right = np.mean([int(label) == sign for (label, _), sign in zip(lines, truth, strict=True)])
    assert right == pytest.approx(prediction["value"])
    for label, score in lines:
        positive = float(score) > (0.5 if problem == "logistic" else 0)
        assert positive == (label == "1")


def test_labels_are_spelled_as_in_the_file_and_one_that_is_unknown_is_not_counted(tmp_path, capsys):
    train = rows(tmp_path / "train.svm", 400, 0, ("0", "7"))
    file = tmp_path / "weights.safetensors"
    solved(capsys, "svm", "--data", train, "--labels", "0=-1,7=+1", "--save", file)
    test = rows(tmp_path / "test.svm", 20, 1, ("0", "7"))
    test.write_text(test.read_text() + "99 1:0.5 4000:1\n")
    assert main(["classic", "predict", str(file), str(test)]) == 0
    out, err = capsys.readouterr()
    assert {line.split("\t")[0] for line in out.splitlines()} == {"0", "7"}
    assert len(out.splitlines()) == 21
    assert err.startswith(
        "svm: 21 predicted, 1 of them with features or identifiers new to the model: "
    )
    assert "at the end of training" in err
    test.write_text("99 1:0.5\n")
    assert predicted(capsys, file, test)["value"] is None
    assert main(["classic", "predict", str(file), str(test), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_regression_predicts_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        x = rng.standard_normal(3)
        lines.append(f"{x @ [1, -2, 0.5]:.5f} 1:{x[0]:.5f} 2:{x[1]:.5f} 3:{x[2]:.5f}\n")
    (tmp_path / "train").write_text("".join(lines[:200]))
    (tmp_path / "test").write_text("".join(lines[200:]))
    file = tmp_path / "weights.safetensors"
    how = ["--data", tmp_path / "train", "--test-data", tmp_path / "test", "--lr", "0.05"]
    trained = solved(capsys, "least-squares", *how, "--save", file)
    prediction = predicted(capsys, file, tmp_path / "test")
    assert prediction["measure"] == "rmse"
    assert prediction["value"] ** 2 / 2 == pytest.approx(trained["measures"]["test_loss"], rel=1e-4)


def test_ratings_are_predicted_for_users_and_items_by_their_names(tmp_path, capsys):
    rng = np.random.default_rng(0)
    users, items = rng.integers(100, 130, 900), rng.integers(5000, 5040, 900)
    stars = np.clip(np.round(3 + 1.5 * np.sin(users * 0.7) * np.cos(items * 0.3)), 1, 5)
    entries = [f"{u},{i},{r:g}\n" for u, i, r in zip(users, items, stars, strict=True)]
    (tmp_path / "train.csv").write_text("".join(entries[:800]))
    (tmp_path / "test.csv").write_text("".join(entries[800:]))
    file, out = tmp_path / "weights.safetensors", tmp_path / "out.txt"
    how = ["--data", tmp_path / "train.csv", "--test-data", tmp_path / "test.csv", "--rank", "4"]
    trained = solved(capsys, "matrix-completion", *how, "--save", file)
    prediction = predicted(capsys, file, tmp_path / "test.csv", "--out", out)
    assert prediction["value"] == pytest.approx(trained["measures"]["test_error"], rel=1e-5)
    assert [line.split("\t")[:2] for line in out.read_text().splitlines()] == [
        entry.split(",")[:2] for entry in entries[800:]
    ]
    (tmp_path / "new.csv").write_text("100,5001,4\n77,5001,3\n")
    prediction = predicted(capsys, file, tmp_path / "new.csv", "--out", out)
    assert (prediction["examples"], prediction["unknown"]) == (2, 1)
    assert float(out.read_text().splitlines()[1].split("\t")[2]) == pytest.approx(
        stars[:800].mean(), abs=1e-4
    )


def test_a_graph_is_cut_as_in_training(tmp_path, capsys):
    edges = [f"{a} {b} 1\n" for a in range(10, 15) for b in range(a + 1, 15)]
    edges += [f"{a} {b} 1\n" for a in range(20, 25) for b in range(a + 1, 25)] + ["14 20 1\n"]
    (tmp_path / "graph").write_text("".join(edges))
    file, out = tmp_path / "weights.safetensors", tmp_path / "out.txt"
    how = ["--data", tmp_path / "graph", "--terminals", "10=0,24=1", "--save", file]
    trained = solved(capsys, "graph-cuts", *how)
    prediction = predicted(capsys, file, tmp_path / "graph", "--out", out)
    assert prediction["value"] == prediction["trained"] == trained["measures"]["cut"] == 1
    labels = dict(line.split("\t") for line in out.read_text().splitlines())
    assert {labels[str(k)] for k in range(10, 15)} == {"0"}
    assert {labels[str(k)] for k in range(20, 25)} == {"1"}
    (tmp_path / "more").write_text("10 24 2\n24 99 1\n")
    prediction = predicted(capsys, file, tmp_path / "more", "--out", out)
    assert (prediction["value"], prediction["unknown"]) == (2, 1)
    assert out.read_text().splitlines()[2] == "99\t?"


def test_images_are_classified_as_in_training(tmp_path, capsys):
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (60, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(60) % 10
    records[:, 1:] = np.clip(records[:, 1:] // 4 + 18 * records[:, :1], 0, 255)
    for name, part in (("train.bin", records[:40]), ("test.bin", records[40:])):
        (tmp_path / name).write_bytes(part.tobytes())
    file = tmp_path / "weights.safetensors"
    how = ["--data", tmp_path / "train.bin", "--test-data", tmp_path / "test.bin", "--epochs", "3"]
    trained = solved(capsys, "image-svm", *how, "--save", file)
    prediction = predicted(capsys, file, tmp_path / "test.bin")
    assert prediction["value"] == pytest.approx(1 - trained["measures"]["test_error"], abs=1e-12)


def test_generated_problems_are_saved_too(tmp_path, capsys):
    for problem in ("synthetic-svm", "linear-regression"):
        file = tmp_path / f"{problem}.safetensors"
        solved(capsys, problem, "--size", "200", "--epochs", "2", "--save", file)
        (tmp_path / "data").write_text("1 1:0.5 5:-1\n-1 2:2\n")
        assert predicted(capsys, file, tmp_path / "data")["examples"] == 2


@pytest.fixture
def weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    file = tmp_path / "weights.safetensors"
    solved(capsys, "svm", "--data", rows(tmp_path / "t", 50, 0), "--save", file, "--epochs", "1")
    return file


def test_what_is_wrong_is_said_with_the_way_out(weights, tmp_path, capsys):
    (tmp_path / "text").write_text("words\n")
    cases = [
        ([weights, tmp_path / "nowhere"], 2, "nowhere cannot be read"),
        ([weights, tmp_path / "text"], 2, "text:1: the label is 'words'"),
        ([tmp_path / "nowhere", weights], 2, "--save FILE` writes them"),
        ([tmp_path / "text", weights], 2, "--save FILE` writes them"),
        ([weights], 2, "FILE"),
        ([weights, tmp_path / "t", "--out", tmp_path], 2, "is a folder; name a file in it"),
        ([weights, tmp_path / "t", "--ouput", "x"], 2, "did you mean '--out'?"),
    ]
    for words, code, text in cases:
        assert main(["classic", "predict", *map(str, words)]) == code
        out, err = capsys.readouterr()
        assert text in err
        assert out == ""
    assert main(["classic", "svm", "--save", str(tmp_path / "no" / "w")]) == 2
    assert "create it first" in capsys.readouterr().err


def test_a_file_with_other_contents_is_refused(weights):
    model = models.load(weights)
    for name, changed, text in (
        (
            "weights",
            model.arrays["weights"][None],
            "tensor weights is missing, has NaN",
        ),
        (
            "weights",
            np.full(10, np.nan, np.float32),
            "tensor weights is missing, has NaN",
        ),
        ("other", model.arrays["weights"], "tensor weights is missing, has NaN"),
    ):
        facts = {"classic": json.dumps(model.facts)}
        weights.write_bytes(models.to_bytes({name: np.ascontiguousarray(changed)}, facts))
        with pytest.raises(DataError, match=text):
            models.load(weights)
    weights.write_bytes(models.to_bytes(dict(model.arrays), {"classic": '{"problem": "cats"}'}))
    with pytest.raises(DataError, match="is not a file of weights"):
        models.load(weights)


def test_a_run_that_diverges_leaves_no_file(tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    data = rows(tmp_path / "train.svm", 100, 0)
    words = ["classic", "svm", "--data", str(data), "--lr", "1e9", "--save", str(file), *ONE]
    assert main(words) == 4
    assert "was not written" in capsys.readouterr().err
    assert not file.exists()
