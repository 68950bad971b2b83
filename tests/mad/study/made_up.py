"""Searches of suite lm with made-up runs."""

from dataclasses import replace

from mlxhog import mad
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.study import final, session
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import open_store
from mlxhog.mad.tasks.text import TEXT_TASK, score_of
from tests.mad.study.small import CutScheduler

REAL = final.compare
NAMES = {k: f"gated-conv(kernel={k}) swiglu" for k in range(5, 11)}
SPACE = {"depth": 2, "mixers": [name.split()[0] for name in NAMES.values()], "channels": ["swiglu"]}
STUDY = StudyDefinition(
    space=SPACE, suite="lm:9000tok", n_candidates=6, prune=True, dim=16, pairs=6
)
BITS = {name: 2.95 if k == 10 else 3 - k / 10 for k, name in NAMES.items()}
BEST = [NAMES[k] for k in (9, 8, 7, 6, 5, 10)]


def made_up(config, **_):
    """The best kernel is the longest, but for 10; decoding is slower with every tap."""
    if config.task != TEXT_TASK:
        score = 1 - BITS[config.candidate] / 10
        return config.record("done", steps=1, seconds=0.01, acc_token=score, acc_macro=1 - score)
    bits = BITS[config.candidate] - config.settings["rung"]
    kernel = config.layers[0].kernel
    measures = {
        "dim": config.dim, "val_bits_per_byte": bits, "train_tokens_per_s": 100.0,
        "decode_tokens_per_s": 1000.0 - 50 * kernel, "state_bytes": 64.0 * kernel,
        "peak_memory_bytes": 1e6,
    }  # fmt: skip
    score = score_of(bits)
    return config.record(
        "done", steps=1, seconds=0.01, acc_token=score, acc_macro=score, measures=measures
    )


def diverging(config, **_):
    """All but one diverge, and that one cannot decode."""
    record = made_up(config)
    if record.candidate != BEST[0]:
        return replace(record, status="diverged", reason="the loss is not finite")
    return replace(record, reason="it cannot decode: no state")


def better_at_3e_3(config, **_):
    """As made up, and other learning rates are worse."""
    record, worse = made_up(config), 0.05 * (config.recipe.lr != 3e-3)
    bits = record.measures["val_bits_per_byte"] + worse
    measures = {**record.measures, "val_bits_per_byte": bits}
    return replace(record, measures=measures, acc_token=score_of(bits), acc_macro=score_of(bits))


def fails(candidate, config, **_):
    """The runs of one candidate fail."""
    failed = config.candidate == candidate
    return config.record("failed", reason="x") if failed else made_up(config)


def cannot_decode(candidate, config, **_):
    """One candidate has no speed of decoding."""
    record = made_up(config)
    measures = {n: v for n, v in record.measures.items() if n != "decode_tokens_per_s"}
    return replace(record, measures=measures) if config.candidate == candidate else record


def placed(config, *, folder, **_):
    """The reason is the folder of the run."""
    return replace(made_up(config), reason=f"{folder} {sorted(folder.iterdir())}")


def without_text(config, **_):
    """Tasks alone have a result."""
    return made_up(config) if config.task != TEXT_TASK else config.record("failed", reason="x")


def searched(root, name="s", n_runs=None, monkeypatch=None, parallel=2, run=made_up, **changes):
    study = replace(STUDY, **changes)
    store = open_store(study, root, name)
    if monkeypatch is not None:
        monkeypatch.setattr(session, "Scheduler", CutScheduler)
        monkeypatch.setattr(CutScheduler, "n_runs", n_runs)
    outcome = session.execute(store, study, ExecutionConfig(parallel=parallel), run=run)
    return mad.Study(store), outcome


def names(study):
    return [row.candidate for row in study]
