"""DiLoCo beside Local SGD on a language model: what the outer step and what AdamW inside does."""

from dataclasses import replace
from statistics import median

from experiment.figures import curves, inks, new_panels
from experiment.language import Bench, setup, trainings_json, workers
from experiment.record import Compared, Experiment, Outcome, other_seed, run
from experiment.searches import search
from harness.claims import Claim, Twin
from harness.estimates import Mean
from harness.interleaved import take_turns

ABOUT = Experiment(
    name="outer_steps",
    title="DiLoCo against Local SGD on a language model",
    source="document 003, exercise 6",
    about=(
        "Two workers with replicas of their own that meet every H steps: plain SGD averaged (the "
        "document's Local SGD), AdamW averaged, and AdamW with Nesterov's outer step (DiLoCo). All "
        "see as much text and send as much; each has the best of its step sizes by a run of a seed "
        "that nothing else uses. The second arm tells the inner optimizer from the outer step."
    ),
    packages=("torch",),
    full_seeds=3,
)
WORKERS = 2
ARMS = {
    "Local SGD, inner SGD": {"strategy": "local_sgd", "optimizer": "sgd"},
    "Local SGD, inner AdamW": {"strategy": "local_sgd", "optimizer": "adamw"},
    "DiLoCo, inner AdamW": {"strategy": "diloco", "optimizer": "adamw"},
}
RATES = {"sgd": (0.1, 0.3, 1.0), "adamw": (1e-3, 2e-3, 4e-3)}
TUNED_ON = 101
SGD, ADAMW, DILOCO = ARMS


def result(scale):
    """Train the three."""
    bench = Bench(replace(setup(scale), looks=4))
    tokens = scale.pick(tiny=2_048, quick=10_000, full=100_000)
    every = scale.pick(tiny=4, quick=5, full=10)
    searched = {name: tuned(bench, scale, name, tokens, every) for name in ARMS}
    best = {name: found.best for name, found in searched.items()}

    def train(name, seed):
        return one(bench, name, seed, tokens, every, best[name])

    runs = take_turns(scale.seeds, ARMS, train)
    again = [train(ADAMW, other_seed(seed)).end for seed in scale.seeds]
    ends = {name: [training.end for training in own] for name, own in runs.items()}
    return Outcome(
        compared=compared(ends),
        table=[
            {
                "arm": name,
                "lr": best[name],
                "bits per byte": Mean.of(ends[name]).spelt(".3f"),
                "lowest": min(ends[name]),
                "highest": max(ends[name]),
                "tokens per second": round(median(t.tokens_per_s for t in own)),
            }
            for name, own in runs.items()
        ],
        claims=[
            Claim("mean staleness", max(t.staleness for own in runs.values() for t in own), "==",
                  0.0, timing=False)
        ],
        settings={
            **bench.setup.to_json(), "optimizer": "of the arm", "tokens": tokens,
            "average_every": every, "lr": best, "tuned_on_seed": TUNED_ON, "outer_lr": 0.7,
            "outer_momentum": 0.9,
        },
        results={
            "trainings": trainings_json(runs),
            "bits per byte by lr": {name: found.to_json() for name, found in searched.items()},
        },
        twins=[Twin.of(ADAMW, ends[ADAMW], again)],
    )  # fmt: skip


def one(bench, name, seed, tokens, every, lr):
    """One run of an arm."""
    return bench.train(
        f"{name}, lr {lr:g}", seed=seed, tokens=tokens, lr=lr, average_every=every,
        workers=workers(WORKERS), **ARMS[name],
    )  # fmt: skip


def tuned(bench, scale, name, tokens, every):
    """The step sizes by loss; the best has a worse one on either side."""
    rates = RATES[ARMS[name]["optimizer"]]
    rates = scale.pick(tiny=rates[:1], quick=rates, full=rates)
    return search(rates, lambda lr: one(bench, name, TUNED_ON, tokens, every, lr).end)


def compared(ends):
    """What the document says, beside this."""

    def below(name, other):
        less = Mean.of_differences(ends[name], ends[other])
        return Claim.of(f"bits per byte, {name} less {other}", less, "<=", 0.0, timing=False)

    inner = Mean.of_differences(ends[ADAMW], ends[SGD])
    outer = below(DILOCO, ADAMW)
    return [
        Compared.of(
            "DiLoCo reaches a lower perplexity than Local SGD at equal communication",
            below(DILOCO, SGD),
        ),
        Compared.of(
            "because of its outer momentum, beside the inner optimizer",
            outer,
            measured=f"{outer.name}: {outer.measured}; AdamW in place of SGD is "
            f"{inner.spelt('+.3f')}",
        ),
        Compared.described(
            "Communication volume is the same",
            "All three average the parameters once a meeting, and meet equally often.",
        ),
    ]


def draw(outcome):
    """Loss over gradients, and the ends."""
    figure, (losses, ends) = new_panels(
        ("gradients", "held-out bits per byte", "First seed"),
        ("", "held-out bits per byte", "At the end, every seed"),
    )
    trainings = outcome.results["trainings"]
    firsts = {name: (own[0]["steps"], own[0]["bits_per_byte"]) for name, own in trainings.items()}
    curves(losses, firsts)
    for k, (name, ink) in enumerate(inks(trainings).items()):
        last = [one["bits_per_byte"][-1] for one in trainings[name]]
        ends.plot([k] * len(last), last, "o", color=ink)
    ends.set_xticks(range(len(ARMS)), ["SGD", "AdamW", "DiLoCo"])
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
