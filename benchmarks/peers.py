"""A minute of `mlxhog train` beside a minute of what a user would install instead.

    python benchmarks/peers.py                    five seeds, fifty minutes
    python benchmarks/peers.py --quick            one seed, a few seconds each: two minutes
    python benchmarks/peers.py --nanochat DIR     a checkout of nanochat races, too
    python benchmarks/peers.py --only own_text --data FOLDER ...    the timed race on other texts
    python benchmarks/peers.py --keep runs.jsonl  an interrupted run continues
    python benchmarks/peers.py --tune             search the settings of the others

Ours is the command with its defaults. The others (`language_models/minute.py`) are the xlstm
package's model and a small Llama of transformers, both by torch's AdamW, and nanochat where its
checkout is given, by its own recipe. litgpt cannot stand beside this transformers: it wants an
older huggingface_hub.

All train on the same text with the same tokenizer, on the same cores, until as many seconds after
the start of their process, and are scored on all validation documents afterwards; what each has
trained by then is its own affair. Then each trains on the same amount of text, whatever it takes.
Arms take turns, ours twice (A/A).

The settings of the others were found by one search (`harness/tuning.py`) over the same axes: step
size, batch, width, depth and schedule. The recorded one ran on a loaded machine: 12 trials of Llama
and 11 of xlstm, whose schedule was not tried. It counts text in place of seconds, as a busy
machine changes no loss. A wider or deeper model gets less of it, as if half of a step's time went
by its products; of both peers that is so within a third, at widths from 64 to 256.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from harness.estimates import Mean
from harness.frame import run, say
from harness.interleaved import KEEP, mlxhog, remembered, take_turns
from harness.machine import ROOT, cores, smallest
from harness.tuning import around, settings, tune
from language_models.minute import SEQ, products, trained
from training.recording import BYTES, of_this_size, record

from mlxhog import TrainConfig
from mlxhog.base.processes import environment, limits_of_threads
from mlxhog.training.plan.decide import make_plan

OURS, AGAIN, NANOCHAT, PEERS = "mlxhog", "mlxhog again", "nanochat", ("xlstm", "llama")
SEARCHED = 300_000  # tokens of a trial at the middle of the axes
TUNED_ON = 101
SCORED = 32_768  # validation tokens of a trial
VOCAB = 8192  # of the default tokenizer
AHEAD, MOST, FIRST_S = 0.1, 1.25, 4.0
"""Bits per byte between ours and any other, ours after a minute, and seconds to our first step."""
MIDDLES = {"xlstm": 4e-3, "llama": 4e-3, NANOCHAT: 4.0}
"""Of the axes of learning rates; that of nanochat is a multiple of its own."""
RECIPE = {"lr": 1.0, "batch_size": 64, "d": 384, "blocks": 6, "schedule": "trapezoid"}
"""Of nanochat's runs/runcpu.sh, by which it races unless a search was recorded."""
ANY = {"lr": 1e-3, "batch_size": 2, "d": 32, "blocks": 1, "schedule": "linear"}


def axes(arm):
    """What the search tries of an arm, one axis after the other."""
    schedules = ("linear", "trapezoid") if arm == NANOCHAT else ("cosine", "linear")
    return {
        "lr": around(MIDDLES[arm], 2.0, 5), "batch_size": (2, 4, 8), "d": (64, 128, 256),
        "blocks": (1, 2, 4), "schedule": schedules,
    }  # fmt: skip


def text(options):
    """The token files of `mlxhog train`, prepared."""
    data = make_plan(TrainConfig(**of_this_size({**smallest(BYTES, {}), **options}))).data
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


def lined_up(chosen, name="", **options):
    """The arms, the settings of the others, and what runs an arm on a text of this name."""
    others = [*PEERS, *([NANOCHAT] if chosen.nanochat else [])]
    known = dict.fromkeys(others, ANY)
    if not chosen.tiny:
        known = {NANOCHAT: RECIPE, **settings("peers", PEERS)}
    checkout = {NANOCHAT: chosen.nanochat and str(chosen.nanochat.resolve())}
    files = text(options)
    for _ in range(2):  # the first one fills caches
        start_s = ours(0, options, tokens=4 * SEQ)["start_s"]

    def run(_, arm, seed, unit, amount):
        budget = {unit: amount}
        if arm in (OURS, AGAIN):
            one = ours(seed, options, start_s=start_s or 0.0, **budget)
        else:
            common = {"files": files, "point": known[arm], "path": checkout.get(arm)}
            one = theirs(arm, seed=seed, **common, **budget)
        say(f"  {arm:12} seed {seed}  {one['bits_per_byte']:.4f}  {one['tokens']:,} tokens")
        return one

    if chosen.nanochat:
        run(name, NANOCHAT, 0, "tokens", 4 * SEQ)  # compiles its optimizer
    return [OURS, *others], known, partial(remembered(chosen.keep, run), name)


def timed_race(findings, chosen, arms, run, of=""):
    """Let all train for as long; returns the runs of each arm, and those of ours again."""
    seconds = chosen.pick(tiny=0.5, quick=10.0, full=60.0)
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


def rows(timed, **more):
    """The table of a timed race; `more` has columns by arm."""
    for arm, runs in timed.items():
        yield {
            "arm": arm, "bits per byte": ", ".join(f"{value:.3f}" for value in bits(runs)),
            "tokens": round(Mean.of(one["tokens"] for one in runs).value),
            "validation text": min(one["share"] or 0.0 for one in runs),
            **{name: of[arm] for name, of in more.items()},
        }  # fmt: skip


def measure(findings, chosen):
    """Let all train for as long, then on as much text."""
    tokens = chosen.pick(tiny=2_000, quick=50_000, full=SEARCHED)
    arms, known, run = lined_up(chosen)
    timed, again = timed_race(findings, chosen, arms, run)
    counted = take_turns(chosen.seeds, arms, lambda arm, seed: run(arm, seed, "tokens", tokens))
    after = {
        arm: ", ".join(f"{value:.3f}" for value in bits(runs)) for arm, runs in counted.items()
    }
    findings.table(rows(timed, **{f"after {tokens:,} tokens": after}))
    for arm in arms[1:]:
        name = f"{arm} less {OURS}, bits per byte after {tokens:,} tokens"
        more = Mean.of_differences(bits(counted[arm]), bits(counted[OURS]))
        findings.at_least(name, more, 0.0, timing=False)
    if chosen.mode == "full":
        name = f"{OURS} train, bits per byte of the full validation set after 60 s"
        findings.at_most(name, Mean.of(bits(timed[OURS])), MOST)
        first_s = Mean.of(one["first_step_s"] for one in (*timed[OURS], *again))
        findings.at_most(f"{OURS} train, first step after, s", first_s, FIRST_S)
    findings.results["settings"] = {arm: known[arm] for arm in arms[1:]}


def own_text(findings, chosen):
    """Let all train for as long on other texts; the settings are those of the first one."""
    table = []
    for path in chosen.data:
        arms, _, run = lined_up(chosen, path.name, data=str(path.resolve()))
        timed, _ = timed_race(findings, chosen, arms, run, of=f"{path.name}: ")
        table += ({"text": path.name, **row} for row in rows(timed))
    findings.table(table)


def tuning(chosen):
    """Search the settings of the others, with one thread each."""
    files, arms = text({}), [*PEERS, *([NANOCHAT] if chosen.nanochat else [])]
    checkout = {NANOCHAT: chosen.nanochat and str(chosen.nanochat.resolve())}

    def loss(arm, point):
        more = products(VOCAB, point["d"], point["blocks"]) / products(VOCAB, 128, 2)
        one = theirs(
            arm, files=files, seed=TUNED_ON, point=point, threads=1, path=checkout.get(arm),
            tokens=round(SEARCHED * 2 / (1 + more)), most=SCORED,
        )  # fmt: skip
        say(f"  {arm} {point}: {one['bits_per_byte']:.4f} after {one['tokens']:,} tokens")
        return round(one["bits_per_byte"], 4)

    tune("peers", {arm: axes(arm) for arm in arms}, loss)


if __name__ == "__main__":
    run(
        __doc__, {"peers": measure, "own_text": own_text}, first={"quick": 1, "full": 1},
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
