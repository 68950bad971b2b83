"""Optuna's TPE as a sampler of `mad search`: the library beside which ours has to stand."""

import optuna

from mlxhog.mad.search.samplers import Learner

MOST_REPEATS = 256
"""Proposals of Optuna that are no new candidate, before a random one is taken."""


class OptunaTPE(Learner):
    """Proposes by `optuna.samplers.TPESampler` with its defaults, a categorical choice for a slot.

    A candidate that Optuna repeats gets its score again, and counts as no proposal. For spaces of
    one depth, without a budget.
    """

    def __init__(self, candidates, seed):
        super().__init__(candidates, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        (depth,) = candidates.depths
        self._slots = candidates.slots(depth)
        self._trial = None

    def learnt(self):
        """Return a proposal of Optuna that is new; None if it repeats candidates."""
        for _ in range(MOST_REPEATS):
            trial = self._study.ask()
            layers = tuple(
                layers[trial.suggest_categorical(f"slot {slot}", range(len(layers)))]
                for slot, layers in enumerate(self._slots)
            )
            if self.is_new(layers):
                self._trial = trial
                return layers
            self._study.tell(trial, self.scores[layers])
        self._trial = None
        return None

    def tell(self, layers, score):
        """Record the score, also with Optuna unless the candidate was a random one."""
        super().tell(layers, score)
        if self._trial is not None:
            self._study.tell(self._trial, score)
