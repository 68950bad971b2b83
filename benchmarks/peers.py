"""A minute of `mlxhog train` beside a minute of what a user would install instead.

    python benchmarks/peers.py                      five seeds, forty minutes
    python benchmarks/peers.py --quick              one seed, a few seconds each: two minutes
    python benchmarks/peers.py --only five_minutes  three seeds, 300 s each: ninety minutes
    python benchmarks/peers.py --nanochat DIR       a checkout of nanochat races, too
    python benchmarks/peers.py --only own_text --data FOLDER ...    the timed race on other texts
    python benchmarks/peers.py --keep runs.jsonl    an interrupted run continues
    python benchmarks/peers.py --tune               search the settings of the others for a minute

Ours is the command with its defaults. The others (`language_models/minute.py`) are the xlstm
package's model and a small Llama of transformers by torch's AdamW, that Llama by torch's Muon, and
nanochat where its checkout is given, by its own optimizer. litgpt cannot stand beside this
transformers: it wants an older huggingface_hub. mlx-lm trains adapters and existing models, none
from scratch.

All train on the same text on the same cores until as many seconds after the start of their process,
and are scored on all validation documents afterwards; what each has trained by then is its own
affair. Arms take turns, ours twice (A/A).

The settings of the others are searched at the race's own budget, on all cores, over the same axes
(`harness/tuning.py`): learning rate, batch, width, depth, vocabulary of the same kind of tokenizer,
schedule; an axis whose last value is the best goes on, and the learning rate is tried again at the
end. Ours are not searched: they are the defaults, which were found on this text. --only names the
races whose settings --tune searches, and --quick takes the middle of each axis.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from harness.claims import Claim
from harness.estimates import Mean
from harness.frame import run, say
from harness.interleaved import KEEP, mlxhog, remembered, take_turns
from harness.machine import BUSY_SHARE, ROOT, cores, smallest
from harness.tuning import around, settings, tune
from language_models.minute import SEQ, trained
from training.recording import BYTES, of_this_size, record

from mlxhog import TrainConfig
from mlxhog.base.load import LoadWatch
from mlxhog.base.processes import environment, limits_of_threads
from mlxhog.training.plan.decide import make_plan

OURS, AGAIN, NANOCHAT = "mlxhog", "mlxhog again", "nanochat"
PEERS = "xlstm", "llama", "llama by Muon"
TUNED_ON = 101
SCORED = 32_768  # validation tokens of a trial
MINUTE = 60.0
SECONDS = {"peers": MINUTE, "five_minutes": 5 * MINUTE, "own_text": MINUTE}
AHEAD, MOST, FIRST_S = 0.1, 1.25, 4.0
"""Bits per byte between ours and any other, ours after a minute, and seconds to our first step."""
MIDDLES = {NANOCHAT: 4.0}
"""Of the axes of learning rates, 4e-3 by default; that of nanochat is a multiple of its own."""
TRIED_FIRST = {"lr": 5, "batch_size": 3, "d": 3, "blocks": 3, "vocab": 3}
ANY = {"lr": 1e-3, "batch_size": 2, "d": 32, "blocks": 1, "vocab": None, "schedule": "linear"}


def axes(arm):
    """What the search tries of an arm, one axis after the other."""
    schedules = ("linear", "trapezoid") if arm == NANOCHAT else ("cosine", "linear")
    return {
        "lr": around(MIDDLES.get(arm, 4e-3), 2.0, 9), "batch_size": (1, 2, 4, 8, 16),
        "d": (32, 64, 128, 256, 512), "blocks": (1, 2, 4), "vocab": (1024, 2048, 4096, 8192, 16384),
        "schedule": schedules,
    }  # fmt: skip


def text(options, vocab=None):
    """The token files of `mlxhog train`, prepared; with a tokenizer of this vocabulary."""
    tokenizer = {} if vocab is None else {"tokenizer": f"bpe:{vocab}"}
    options = of_this_size({**smallest(BYTES, {}), **tokenizer, **options})
    data = make_plan(TrainConfig(**options)).data
    return [str(data.train.path), str(data.val.path)]


def theirs(arm, **job):
    """Train an arm of others in a process of its own, from whose start `seconds` count."""
    job = {"arm": arm, "threads": len(cores()), **job}
    if (seconds := job.pop("seconds", None)) is not None:
        job["end_s"] = time.monotonic() + seconds
    if smallest(True, False):
        return {"share": 1.0, **trained(**job, most=1024)}
    words = [sys.executable, "-m", "language_models.minute", json.dumps(job)]
    with environment(limits_of_threads(job["threads"])):
        done = subprocess.run(
            words, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{arm} ended with exit code {done.returncode}; see above")
    return {"share": 1.0, **json.loads(done.stdout.splitlines()[-1])}


def ours(seed, options, *, start_s=0.0, seconds=None, tokens=None):
    """Run `mlxhog train`; `start_s` of its seconds go by before it trains."""
    if smallest(True, False):
        result = vars(record(seed=seed, eval_every="10s", **BYTES, **options).result)
    else:
        budget = f"--tokens={tokens}" if seconds is None else f"--time={seconds - start_s:g}"
        with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
            words = [f"--{name}={value}" for name, value in options.items()]
            process = mlxhog(folder, "train", "--json", f"--seed={seed}", budget, *words)
            lines = process.communicate()[0].splitlines()
        if process.returncode:
            raise SystemExit(f"mlxhog train ended with exit code {process.returncode}")
        result = json.loads(lines[-1])
    kind = "val" if result.get("final_bits_per_byte") is None else "final"
    return {
        "bits_per_byte": result[f"{kind}_bits_per_byte"], "share": result.get(f"{kind}_share"),
        **{name: result.get(name) for name in ("tokens", "start_s", "first_step_s")},
    }  # fmt: skip


def bits(runs):
    """Bits per byte of each run."""
    return [one["bits_per_byte"] for one in runs]


def lined_up(chosen, seconds, name="", **options):
    """The arms, the settings of the others, and what runs an arm on a text of this name.

    With `--quick` and `--tiny` the settings are the middle of their axes.
    """
    others = [*PEERS, *([NANOCHAT] if chosen.nanochat else [])]
    known = {
        arm: smallest(ANY, {axis: values[len(values) // 2] for axis, values in axes(arm).items()})
        for arm in others
    }
    if not chosen.quick:
        known = settings(searched(seconds), others)
    checkout = {NANOCHAT: chosen.nanochat and str(chosen.nanochat.resolve())}
    files = {vocab: text(options, vocab) for vocab in {known[arm]["vocab"] for arm in others}}
    for _ in range(2):  # the first one fills caches
        start_s = ours(0, options, tokens=4 * SEQ)["start_s"]

    def run(_, arm, seed, unit, amount):
        budget = {unit: amount}
        if arm in (OURS, AGAIN):
            one = ours(seed, options, start_s=start_s or 0.0, **budget)
        else:
            own = {"files": files[known[arm]["vocab"]], "path": checkout.get(arm)}
            one = theirs(arm, seed=seed, point=known[arm], **own, **budget)
        say(f"  {arm:14} seed {seed}  {one['bits_per_byte']:.4f}  {one['tokens']:,} tokens")
        return one

    if chosen.nanochat:
        run(name, NANOCHAT, 0, "tokens", 4 * SEQ)  # compiles its optimizer
    return [OURS, *others], known, partial(remembered(chosen.keep, run), name)


def searched(seconds):
    """The name of the settings for races of this length."""
    return f"peers-{seconds:g}s"


def timed_race(findings, seconds, chosen, arms, run, of=""):
    """Let all train for as long; returns the runs of each arm, and those of ours again."""
    seconds = chosen.pick(tiny=0.5, quick=10.0, full=seconds)
    places = [*arms, AGAIN]
    timed = take_turns(chosen.seeds, places, lambda arm, seed: run(arm, seed, "seconds", seconds))
    again = timed.pop(AGAIN)
    findings.same(f"{of}{OURS}, bits per byte", bits(timed[OURS]), bits(again))
    for arm in arms[1:]:
        findings.at_least(
            f"{of}{arm} less {OURS}, bits per byte after {seconds:g} s",
            Mean.of_differences(bits(timed[arm]), bits(timed[OURS])),
            chosen.pick(tiny=0.0, quick=0.0, full=AHEAD),
        )
    return timed, again


def rows(timed):
    """The table of a timed race."""
    for arm, runs in timed.items():
        yield {
            "arm": arm, "bits per byte": ", ".join(f"{value:.3f}" for value in bits(runs)),
            "tokens": round(Mean.of(one["tokens"] for one in runs).value),
            "validation text": min(one["share"] or 0.0 for one in runs),
        }  # fmt: skip


def race(seconds, seeds, findings, chosen):
    """Let all train for as long."""
    findings.seeds = chosen.seeds = chosen.seeds[:seeds]
    arms, known, run = lined_up(chosen, seconds)
    timed, again = timed_race(findings, seconds, chosen, arms, run)
    findings.table(rows(timed))
    if chosen.mode == "full" and seconds == MINUTE:
        name = f"{OURS} train, bits per byte of the full validation set after {seconds:g} s"
        first_s = Mean.of(one["first_step_s"] for one in (*timed[OURS], *again))
        findings.document(
            Claim.of(name, Mean.of(bits(timed[OURS])), "<=", MOST),
            Claim.of(f"{OURS} train, first step after, s", first_s, "<=", FIRST_S),
        )
    findings.results["settings"] = {arm: known[arm] for arm in arms[1:]}


def own_text(findings, chosen):
    """Let all train for as long on other texts; the settings are those of the first one."""
    table = []
    for path in chosen.data:
        arms, _, run = lined_up(chosen, MINUTE, path.name, data=str(path.resolve()))
        timed, _ = timed_race(findings, MINUTE, chosen, arms, run, of=f"{path.name}: ")
        table += ({"text": path.name, **row} for row in rows(timed))
    findings.table(table)


def tuning(chosen):
    """Search the settings of the others for the races of --only."""
    arms = [*PEERS, *([NANOCHAT] if chosen.nanochat else [])]
    checkout = {NANOCHAT: chosen.nanochat and str(chosen.nanochat.resolve())}
    for seconds in {SECONDS[part] for part in chosen.only or ["peers"]}:
        tune(searched(seconds), {arm: axes(arm) for arm in arms}, partial(loss, seconds, checkout),
             first=TRIED_FIRST)  # fmt: skip


def loss(seconds, checkout, arm, point):
    """Bits per byte of a trial, which is repeated while others keep the machine busy."""
    files = text({}, point["vocab"])
    if arm == NANOCHAT:  # compiles its optimizer for these shapes
        theirs(arm, files=files, seed=0, point=point, path=checkout[arm], tokens=4 * SEQ, most=SEQ)
    while True:
        watch = LoadWatch()
        one = theirs(arm, files=files, seed=TUNED_ON, point=point, path=checkout.get(arm),
                     seconds=seconds, most=SCORED)  # fmt: skip
        others = watch.look().others
        say(f"  {arm} {point}: {one['bits_per_byte']:.4f} after {one['tokens']:,} tokens")
        if others <= BUSY_SHARE:
            return round(one["bits_per_byte"], 4)
        say(f"  others used {others:.2f} cores meanwhile: once more")


if __name__ == "__main__":
    run(
        __doc__,
        {"peers": partial(race, MINUTE, 5), "five_minutes": partial(race, 5 * MINUTE, 3),
         "own_text": own_text},
        first={"quick": 1, "full": 1},
        modes={"quick": "one seed, a few seconds each"}, actions={"tune": tuning},
        options={
            "--nanochat": {"type": Path, "metavar": "DIR", "help": "a checkout of nanochat"},
            **KEEP,
            "--data": {
                "type": Path, "metavar": "PATH", "nargs": "+", "default": [ROOT / "docs"],
                "help": "texts of own_text",
            },
        },
        packages=("torch", "xlstm", "transformers"), quiet=True, seeds=(1, 5),
    )  # fmt: skip
