"""Wrong input through the real commands: one message with the way out, and nothing is written.

Values out of range are a property of every option; the other refusals are a table for each command.
"""

import io
import shlex
from pathlib import Path

import pytest

from mlxhog.base import machine
from mlxhog.cli import find, main, names
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError
from mlxhog.serving import opening
from tests.data.token_files import written
from tests.pairs import ENDS, each_of
from tests.training.small import SMALL_MODEL
from tests.words import changed

SMALL = "--seq-len 32 --batch-size 2 --workers mlx:cpu --threads 1"
TRAIN = f"train --model=small.yaml --data=good.txt {SMALL} --steps 2 --quiet"
COMPARE = f"compare small.yaml --data good.txt {SMALL} --tokens 3k --val-subset-tokens 1k"

REFUSED = {
    "": """
trian                             no command 'trian'; did you mean 'train'?
--helf                            did you mean '--help'?
runs remove                       `mlxhog runs rm RUN` removes
runs --json --runs-dir a --json        --json and --json are the same option
runs --runs-dir ''                --runs-dir is ''; wanted a path
report latest --output ''         --output is ''; wanted a path
completion                        SHELL is missing: bash or zsh
""",
    TRAIN: """
--lr                              expected one argument: peak learning rate
resume latest                     unexpected argument 'resume'; did you mean '--resume'?
good.txt                          text is named by a flag: --data good.txt
--step 3                          no flag '--step'; did you mean '--steps'?
--model=5m --size 10m             --model and --size are the same option
--config key.yaml                 key.yaml:1: no option 'wrokers'; did you mean 'workers'?
--optimizer sgd --beta1 0.5       --beta1: sgd has no beta1; muon, adamw,
--model 5M                        did you mean '5m'?
3 --model huge.yaml               the parameters of model huge.yaml alone need
--set vocab_size=200              vocab_size 200, tokenizer bytes 257 ids, one of which is BOS
--set tie_word_embeddings=true --head-lr 2    head is its embedding (tied)
--seq-len 1000000                 use more text or a smaller seq_len
3 --workers mlx:gpu               use mlx:cpu here
--runs-dir good.txt                    good.txt is a file
--runs-dir good.txt --dry-run     good.txt is a file
--determinism replay --dry-run    to replay a run use mlxhog replay RUN
--runs-dir ''                     --runs-dir is ''; wanted a path
--follow '' --dry-run             --follow is ''; wanted a path; the current folder is .
--name a/b                        use letters, digits
--gpu-write metal-emulated --write lossless   every CPU writer has to use cas
--keep-best --eval-every off      keep_best: needs eval_every
--keep-best=false                 --keep-best takes no value, it has 'false'; --no-keep-best
--grad-checkpoint=false           takes no value, it has 'false'; --recompute none switches it off
--grad-checkpoint --recompute none    --grad-checkpoint and --recompute are the same option
--gradient-checkpointing          did you mean '--recompute'?
--overlap true                    unexpected argument 'true'; a flag such as --x takes no value
--safety-checks --no-safety-checks    --safety-checks and --no-safety-checks are the same option
""",
    "train --steps 2": """
--per_device_train_batch_size=3   did you mean '--batch-size'?
--hidden-size=3                   it is a field of the model
--steps-per-report=3              metrics.jsonl
--wandb                           curves: --report-to wandb
--report-to tensorbord,wandb      did you mean 'tensorboard'?
--deepspeed=zero.json             it trains on one machine's workers
--quantize                        --adapter lora --base-weights 4bit trains
--use-lora                        --adapter lora trains an adapter
--push-to-hub                     nothing is uploaded; mlxhog convert
--train-on-inputs                 did you mean '--loss-on'?
--flash-attn                      nothing is compiled
--n-gpu-layers 9                  did you mean '--workers'?
--sede 3                          did you mean '--seed'?
""",
    "generate": """
                                  RUN_OR_CHECKPOINT is missing
--model latest                    named without a flag
latest --max-length 3             did you mean '--max-new-tokens'?
latest -n 3                       did you mean '--max-new-tokens'?
-m latest                         named without a flag
latest                            there is no run in runs yet; start one with: mlxhog train
nowhere                           no run 'nowhere'
folder                            folder is neither a checkpoint nor a run
x --prompt @nowhere.txt           nowhere.txt: No such file
x --prompt -                      --prompt -: not UTF-8 text
x --prompt-file empty.txt         --prompt-file empty.txt: holds no prompts
x --prompt-file talk.jsonl        talk.jsonl:1: message 1 has no content
x --prompt-file good.txt --prompt a           --prompt-file and --prompt are both given; keep one
x --stop a\udcff                  --stop 'a\\udcff': not UTF-8 text
x --stop ''                       --stop is ['']; wanted a text, or a list of texts: at most 64
""",
    "show": """
                                  RUN is missing: a path, a run's name or a part of it, or latest
""",
    "models": """
--set hidden_size=2               --set is for one model; name it
""",
    "options": """
slak                              no option 'slak'; did you mean 'slack'?
xyzzyq                            no option 'xyzzyq'; mlxhog options lists all
--slack                           options are named without dashes: mlxhog options slack
""",
    "parity": """
                                  needs a SUBJECT
gone                              gone
tiny --backends torhc:cpu         did you mean 'torch:cpu'?
tiny --side-limit 5               give --side, too
3 7b                              use fewer --backends
latest --set x=1                  the checkpoint latest are fixed
small.yaml --perturb lm_hed.weight --seq-len 9 --steps 0 --backends numpy,mlx:cpu --quiet    \
did you mean 'lm_head.weight'?
""",
    "research analyze": """
                                  CONFIG_OR_RUN is missing
tiny --backend torch:cpu*2        wanted auto or one of
tiny --eval-every 3               other options of train are read from a YAML file
""",
    "research analyze small.yaml --data good.txt --samples 12 --batches 40 --seq-len 32": """
--batch-size 2000                 conflict takes two; use more text
""",
    f"research advise small.yaml --data good.txt {SMALL}": """
--workers mlx:cpu                 advise on two or more, as in --workers 2
""",
    COMPARE: """
nothing-like-it                   no architecture, no file and no run
--b "--data more.txt"             different validation texts
--b "--steps 5"                   --steps is not for one side
--b "--learning-rat 1"            --b '--learning-rat 1': no flag
--b "--lr 'x"                     No closing quotation
--b "--model 7to1-tinny"          B (small): no architecture '7to1-tinny'
""",
    "compare --quiet": """
-- --json                         '--json' is no architecture
tokens.yaml time.yaml             A has a budget of tokens 3000, B of time 5.0
tiny --folder ''                  --folder is ''; wanted a path
epochs.yaml epochs.yaml           equal time, tokens or steps
""",
    "research simulate": """
--times gauss:1                   wanted one of constant:TIME
--inject-stragglers 9=2           inject_stragglers names worker 9, and the run has 4
--machines 3 --link 1Gbit         equally many workers each
--strategies hogwidl              did you mean 'hogwild'
""",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small model and files of every bad kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "FIRST_RUN_S", 0.1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    written(tmp_path, {
        "small.yaml": SMALL_MODEL,
        "huge.yaml": SMALL_MODEL.replace("hidden_size: 32", "hidden_size: 262144"),
        "good.txt": " ".join(map(str, range(12_000))),
        "more.txt": " ".join(map(str, range(9_000, 18_000))),
        "empty.txt": "\n  \n",
        "talk.jsonl": '{"messages": [{"role": "user"}]}',
        "key.yaml": "wrokers: 2\n",
        "tokens.yaml": "model: tiny\nlr: 0.1\ntokens: 3000\n",
        "time.yaml": "model: tiny\nlr: 0.1\ntime: 5\n",
        "epochs.yaml": "model: tiny\nlr: 0.1\nepochs: 5\n",
    })  # fmt: skip
    Path("folder").mkdir()


def rows(table):
    for line in table.strip("\n").splitlines():
        words, _, message = line.partition("  ")
        code, _, after = words.partition(" ")
        yield (after, 3, message.strip()) if code == "3" else (words, 2, message.strip())


@pytest.mark.parametrize("common", REFUSED, ids=range(len(REFUSED)))
def test_wrong_input_is_one_message_and_leaves_nothing(here, common, capsys, subtests):
    before = sorted(Path().rglob("*"))
    for words, code, message in rows(REFUSED[common]):
        if "mlx:gpu" in words and machine.here().apple_gpu:
            continue
        try:
            assert main(changed(shlex.split(common), *shlex.split(words))) == code
            out, err = capsys.readouterr()
            assert message in err
            assert len(err.splitlines()) == 1
            assert out == ""
            assert sorted(Path().rglob("*")) == before
        except ENDS as end:
            with subtests.test(ascii(words)):
                raise end


@each_of("name", names())
def test_every_option_refuses_what_it_cannot_be_and_says_what_it_wants(name):
    command, _ = find(name.split())
    flags = command.flags()
    specs = [*flags.specs()]
    arguments = [one for one in specs if one.argument and not one.argument.startswith("[")]
    places = [one.choices[0] if one.choices else "x" for one in arguments]
    required = [(one.flag, one.choices[0] if one.choices else 9) for one in specs if one.required]
    needed = {flag: f"{flag}={value}" for flag, value in required}

    def read(words):
        for part, values in zip(flags.parts, flags.parse([*places, *words]), strict=True):
            if part.merged:
                resolve(part.cls, [values])

    for spec in specs:
        assert not spec.name.startswith("no_")
        assert not spec.name.endswith(("_s", "_ms"))  # the unit stands in the value
        if spec.type is bool:
            for flag in (spec.flag, f"--no-{spec.flag[2:]}"):
                flags.parse([*places, *needed.values(), flag])
        takes_any = spec.many or (spec.type is str and not spec.choices)
        if spec.argument or spec.type is bool or takes_any:
            continue
        choice = [f"--{owner.registry.title}={owner.name}" for owner in spec.owners[:1]]
        for wrong in ["@"] if spec.low is None else ["@", str(spec.low - 1)]:
            message = rf"(?m)^{spec.flag}(:.*| is) '{wrong}'; wanted "
            with pytest.raises(ConfigError, match=message):
                read([*choice, *(needed | {spec.flag: f"{spec.flag}={wrong}"}).values()])
