"""The model card says what the record of a run says, and no more."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog.checkpoint.run_files import CommandRecord
from mlxhog.cli import main
from mlxhog.cli.frame.flags import Flags, OptionGroup
from mlxhog.config.config import TrainConfig
from mlxhog.display import card
from mlxhog.display.record import command_lines
from mlxhog.models import families
from mlxhog.models.adapters import LoRA
from mlxhog.progress import Result
from tests.pairs import each_of
from tests.saved import SMALL, saved_run, write_adapter


def trained(folder, **result):
    """A run with a checkpoint and a result, which no process has trained."""
    run = saved_run(folder / "runs", step=16)
    run.config_path.write_text("data: notes|`x`.txt\nsteps: 16\n")
    ended = Result(
        run="run", status="done", steps=16, seconds=1.0, tokens_per_s=1.0, restarts=0, torn=0,
        dropped_steps=0, checkpoint=str(run.model.resolve()), val_bits_per_byte=1.25, val_step=16,
        val_bytes=2048, val_share=0.1,
    )  # fmt: skip
    run.write_status({"status": "done", "result": replace(ended, **result).to_json()})
    return run


def test_a_card_names_data_steps_score_and_command(tmp_path):
    run = trained(tmp_path)
    card.write(run, SMALL)
    written = (run.model / "README.md").read_text()
    for words in (
        "- data: `notes|'x'.txt`", "16 updates", "mlxhog train --data", "--steps 16",
        "1.250 bits per byte of 2.0 kB of validation text (10%)", "no interval",
    ):  # fmt: skip
        assert words in written
    assert str(tmp_path) not in written


def test_a_card_has_every_command_in_order_and_no_folder_of_its_machine(tmp_path):
    run = trained(tmp_path)
    data = str(tmp_path / "notes.txt")
    base = str(tmp_path / "base")
    run.config_path.write_text(f"data: {data}\nsteps: 4\nlr: 0.1\ninit_from: {base}\n")
    run.write_status({**run.read_status(), "sample_prompt": 'the {cat}\nsat "', "commands": [
        {"from_step": 0, "to_step": 12, "options": {"data": data, "steps": 12}},
        {"from_step": 12, "to_step": 16,
         "options": {"data": data, "steps": 4, "lr": 0.1, "keep_best": False}},
    ]})  # fmt: skip
    written = card.text(SMALL, run.model.resolve())
    first = "- steps 1 to 12: `mlxhog train --data notes.txt --steps 12`"
    more = "--steps 4 --lr 0.1 --no-keep-best"
    second = f"- steps 13 to 16: `mlxhog train --resume {run.name} {more}`"
    for words in (f"{first}\n{second}\n", '\nbase_model: "base"\n', "\nlicense: ", "hf upload "):
        assert words in written
    assert "the {cat}" not in written  # words of its own text
    assert str(tmp_path) not in written
    run.config_path.write_text("init_from: none\n")
    assert "base_model" not in card.text(SMALL, run.model.resolve())


@each_of("result", [{"val_step": 3}, {"checkpoint": "step-00000003"}, {"val_bits_per_byte": None}])
def test_a_score_of_another_step_is_not_this_checkpoint_s(tmp_path, result):
    run = trained(tmp_path, **result)
    written = card.text(SMALL, run.model.resolve())
    assert "not evaluated at this step" in written
    assert "bits per byte" not in written


def test_a_checkpoint_of_an_earlier_evaluation_has_that_score(tmp_path):
    run = trained(tmp_path, val_step=20, checkpoint="step-00000020")
    for step, bits in ((8, 3.0), (16, 1.5), (20, 1.25)):
        score = {"val_step": step, "val_bits_per_byte": bits, "val_bytes": 2048}
        run.append_metrics({"step": step, "elapsed_s": step / 8, **score})
    written = card.text(SMALL, run.model.resolve())
    assert "- score: 1.500 bits per byte of 2.0 kB of validation text" in written


def test_conversions_carry_a_card_and_replace_none_of_its_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path)

    def convert(*words):
        return main(["convert", *words, "--quiet"])

    assert convert("latest", "exported", "--format", "hf") == 0
    written = Path("exported/README.md").read_text()
    assert "library_name: transformers" in written
    assert "mlxhog convert latest exported --format hf" in written
    assert convert("latest", "for-mlx-lm", "--format", "mlx-lm") == 0
    written_for_mlx_lm = Path("for-mlx-lm/README.md").read_text()
    assert "library_name: mlx\n" in written_for_mlx_lm
    assert "mlx_lm.generate --model FOLDER" in written_for_mlx_lm
    assert convert("exported", "ours", "--format", "mlxhog") == 0
    ours = Path("ours/README.md").read_text()
    line = "- converted by `mlxhog convert latest exported --format hf`\n"
    lines = line + line.replace("latest exported --format hf", "exported ours --format mlxhog")
    expected = written.replace(line, lines)
    assert ours == expected.replace("library_name: transformers", "library_name: mlxhog")
    assert convert("latest", "exported", "--format", "hf", "--overwrite") == 0
    Path("exported/README.md").write_text("# Theirs\n")
    assert convert("exported", "ours", "--format", "mlxhog", "--overwrite") == 0
    assert Path("ours/README.md").read_text().startswith("# Theirs\n")
    assert convert("latest", "exported", "--format", "hf", "--overwrite") == 2
    assert "exported has README.md, which --overwrite would delete" in capsys.readouterr().err


def test_the_card_of_a_conversion_has_no_folder_of_its_machine(tmp_path):
    source, config = trained(tmp_path).model.resolve(), tmp_path / "my config.json"
    config.write_bytes((source / "config.json").read_bytes())
    words = [str(source), str(tmp_path / "e"), "--format", "hf", "--config", str(config)]
    assert main(["convert", *words]) == 0
    written = (tmp_path / "e" / "README.md").read_text()
    line = f"mlxhog convert {source.name} e --format hf --config 'my config.json'"
    assert f"- converted by `{line}`\n" in written
    assert str(tmp_path) not in written


LACKED = {
    "tables": replace(SMALL, ngram_orders=(2,), ngram_dim=4, ngram_rows=64),
    "no final norm": replace(SMALL, add_out_norm=False),
    "a bias": replace(SMALL, out_norm_bias=True),
    "resets": replace(SMALL, reset_at_document_boundaries=True, bos_token_id=256),
}
"""Models of xLSTM Large that transformers does not have."""


@each_of("name", LACKED)
def test_a_card_says_how_a_model_that_transformers_lacks_loads(tmp_path, name):
    model = LACKED[name]
    params = families.init_params(model, seed=0)
    if model.out_norm_bias:
        params["backbone.out_norm.bias"] += 1
    run = saved_run(tmp_path / "runs", model=model, params=params)
    card.write(run, model)
    assert "AutoModelForCausalLM" not in (run.model / "README.md").read_text()
    folder = tmp_path / "hf"
    assert main(["convert", str(run.directory), str(folder), "--format", "hf", "--quiet"]) == 0
    assert (folder / "modeling_torch.py").exists()
    written = (folder / "README.md").read_text()
    assert 'from_pretrained("FOLDER", trust_remote_code=True)  # mlxhog must be' in written
    adapter = replace(model, adapter=LoRA(rank=2))
    assert "PeftModel" not in card.text(adapter, run.model.resolve(), to="peft")


def test_a_card_of_a_final_norm_with_a_bias_of_zeros_loads_without_our_code(tmp_path):
    run = saved_run(tmp_path / "runs", model=LACKED["a bias"])
    folder = tmp_path / "hf"
    assert main(["convert", str(run.directory), str(folder), "--format", "hf", "--quiet"]) == 0
    written = (folder / "README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER")' in written
    assert "trust_remote_code" not in written


def adapted(folder, card_of_base="", base="base"):
    """An adapter of PEFT in `adapter`, on the checkpoint of a run that is exported to `base`."""
    model = replace(SMALL, adapter=LoRA(rank=2))
    run = saved_run(folder / "runs")
    assert main(["convert", str(run.model.resolve()), base, "--format", "hf"]) == 0
    (folder / base / "README.md").write_text(card_of_base)
    (folder / "adapter").mkdir()
    write_adapter(folder / "adapter", model, families.init_params(model, 0), base=base)
    return model


@pytest.mark.parametrize(
    ("card_of_base", "license"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\nlicense: gpl\n", "mit"),
        ("---\ntags: [a]\n---\nlicense: gpl\n", "unknown"),
        ("license: gpl\n", "unknown"),
    ],
)
def test_the_card_of_an_adapter_names_its_base_license_and_library(
    tmp_path, monkeypatch, card_of_base, license
):
    monkeypatch.chdir(tmp_path)
    adapted(tmp_path, card_of_base)
    assert main(["convert", "adapter", "a", "--format", "peft"]) == 0
    written = (tmp_path / "a" / "README.md").read_text()
    for words in (
        'base_model: "base"', "library_name: peft", f"license: {license}", "LoRA of rank 2, ",
        'PeftModel.from_pretrained(base, "FOLDER")', "hf upload YOUR_NAME/YOUR_MODEL FOLDER",
    ):  # fmt: skip
        assert words in written


def test_a_converted_card_keeps_what_its_reader_wrote_and_says_how_the_new_files_load(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    adapted(tmp_path)
    assert main(["convert", "adapter", "a", "--format", "mlx-lm-adapter"]) == 0
    card = tmp_path / "a" / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: mit\n#"))
    for to, library, loads in (
        ("peft", "library_name: peft", "from peft import PeftModel"),
        ("hf", "library_name: transformers", 'tokenizer = AutoTokenizer.from_pretrained("FOLDER"'),
    ):
        assert main(["convert", "a", to, "--format", to, *["--merge"] * (to == "hf")]) == 0
        written = (tmp_path / to / "README.md").read_text()
        for words in ("license: mit\n", library, loads, f"`mlxhog convert a {to} --format {to}"):
            assert words in written
        assert "library_name: mlx\n" not in written
        assert ("PeftModel" in written) == ("lora]" in written) == (to == "peft")


def test_the_card_of_a_merged_model_names_its_base_and_no_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapted(tmp_path)
    assert main(["convert", "adapter", "whole", "--merge", "--format", "hf"]) == 0
    written = (tmp_path / "whole" / "README.md").read_text()
    assert 'base_model: "base"' in written
    assert "library_name: transformers" in written
    assert "LoRA" not in written


def test_a_value_that_begins_with_a_dash_is_read_again():
    part = CommandRecord(from_step=0, to_step=3, options={"document_separator": "---"})
    ((_, line),) = command_lines("a-run", [part], {})
    program, command, *words = shlex.split(line)
    assert (program, command) == ("mlxhog", "train")
    flags = Flags("train", "", [OptionGroup(TrainConfig, merged=True)])
    assert flags.parse(words)[0]["document_separator"][0] == "---"
