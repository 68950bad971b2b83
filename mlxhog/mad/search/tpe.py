"""Tree-structured Parzen estimator: what good candidates have in each slot and bad ones lack.

Optuna's, by ask and tell: the depth and every slot is one categorical choice.

Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization, NeurIPS.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from mlxhog.errors import EnvironmentLacks
from mlxhog.mad.search.candidates import Candidates, Layers
from mlxhog.mad.search.history import History
from mlxhog.models.mad.layer import Layer
from mlxhog.models.mad.sequence import canonical

if TYPE_CHECKING:
    import optuna

TRIES = 24
"""Proposals that may lie outside of the space, or be known, before a random candidate."""


class TPE:
    """Proposes what Optuna estimates to be good.

    Args:
        candidates: the space.
        seed: of everything it draws.
        start: candidates that end before the estimate begins; random ones until then.

    Raises:
        EnvironmentLacks: Optuna is not installed.
    """

    def __init__(self, candidates: Candidates, seed: int, *, start: int = 10) -> None:
        try:
            import optuna
        except ImportError as error:
            raise EnvironmentLacks(
                "sampler tpe needs Optuna, which is not installed; "
                "pip install 'mlxhog[search]', or take --sampler evolution"
            ) from error
        self._history = History(candidates, seed)
        self._start = start
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize")
        self._trials: dict[Layers, int] = {}

    def ask(self) -> Layers | None:
        """Return an estimated candidate, or a random one."""
        if self._history.is_over:
            return None
        layers = self._estimated() if len(self._history.told) >= self._start else None
        layers = layers or self._history.unseen()
        self.recall(layers)
        return layers

    def tell(self, layers: Layers, score: float) -> None:
        """Tell Optuna a score."""
        if layers not in self._history.told:
            self.recall(layers)
            self._study.tell(self._trials[layers], score)
        self._history.tell(layers, score)

    def recall(self, layers: Layers) -> None:
        """Give Optuna a running trial of the candidate."""
        from optuna.distributions import BaseDistribution, CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        plan = self._history.candidates.plan(layers)
        assert plan is not None  # recalled candidates are of this space
        if layers in self._trials:
            return
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(words) for name, words in self._words(len(plan)).items()
        }
        values = [str(len(plan)), *(canonical([layer]) for layer in plan)]
        self._trials[layers] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(zip(distributions, values, strict=True)),
                distributions=distributions,
            )
        )
        self._history.propose(layers)

    def _estimated(self) -> Layers | None:
        """A candidate of Optuna's; None where it keeps to what is known or not allowed."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(
                # Those that are being trained count as bad, so that neighbours are not crowded.
                constant_liar=True,
                n_startup_trials=0,
                seed=self._history.stream().randrange(2**32),
            )
        for _ in range(TRIES):
            trial = self._study.ask()
            layers = self._history.candidates.build(self._suggested(trial))
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)  # it has a trial of its own
            if layers is not None and layers not in self._history:
                return layers
        return None

    def _suggested(self, trial: optuna.Trial) -> list[Layer]:
        space = self._history.candidates.space
        depth = int(trial.suggest_categorical("depth", [str(depth) for depth in space.depths]))
        layers = []
        for (name, words), choices in zip(
            list(self._words(depth).items())[1:], space.slots(depth), strict=True
        ):
            layers.append(choices[words.index(trial.suggest_categorical(name, words))])
        return layers

    def _words(self, depth: int) -> dict[str, list[str]]:
        """What a plan consists of: the possible words of its depth and of every slot, by name."""
        space = self._history.candidates.space
        words = {"depth": [str(depth) for depth in space.depths]}
        for slot, choices in enumerate(space.slots(depth)):
            words[f"slot {slot}"] = [canonical([layer]) for layer in choices]
        return words
