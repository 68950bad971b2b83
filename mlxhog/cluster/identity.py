"""What the members of a cluster must have in common; compared when a machine joins."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Self

from mlxhog.arena import Layout
from mlxhog.base import plain_json
from mlxhog.config.cluster import Cluster
from mlxhog.errors import ConfigError, shown

_WAYS_OUT = {
    "version": "install the same version of mlxhog on all machines",
    "layout": "give all machines the same --model and --set",
    "tokenizer": "give all machines the same --tokenizer, such as a tokenizer.json",
    "data": "give all machines the same --data and --seq-len",
    "batch_size": "give all machines the same --batch-size and --grad-accumulation",
    "seed": "give all machines the same --seed",
    "round_every": "give all machines the same --round-every",
    "outer_lr": "give all machines the same --cluster-outer-lr",
    "outer_momentum": "give all machines the same --cluster-outer-momentum",
    "round_dtype": "give all machines the same --round-dtype",
    "system": "Gloo cannot mix macOS and Linux (pytorch/gloo#383); take machines of one system",
}
_RESTART = "if all of them have left, restart mlxhog cluster start"  # it keeps the first identity


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be equal on all members.

    Attributes:
        version: of mlxhog.
        layout: digest of the names, shapes and places of the parameters.
        tokenizer: digest of the tokenizer.
        data: digest of the training text, with the length of a sequence.
        batch_size: sequences of a batch; the order of the data counts batches.
        seed: of initial values and of the order of the data.
        round_every: seconds between two rounds.
        outer_lr: of the outer optimizer.
        outer_momentum: likewise.
        round_dtype: type of the numbers on the wire.
        system: the operating system.
    """

    version: str
    layout: str
    tokenizer: str
    data: str
    batch_size: int
    seed: int
    round_every: float
    outer_lr: float
    outer_momentum: float
    round_dtype: str
    system: str

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        layout: Layout,
        *,
        tokenizer: str,
        data: str,
        batch_size: int,
        seed: int,
    ) -> Self:
        """Describe this machine's run; numbers of its own, such as its workers, do not count.

        Args:
            cluster: the choice of the run.
            layout: of the arena.
            tokenizer: see the class.
            data: see the class.
            batch_size: see the class.
            seed: see the class.
        """
        return cls(
            version=version("mlxhog"),
            layout=parameters_digest(layout),
            tokenizer=tokenizer,
            data=data,
            batch_size=batch_size,
            seed=seed,
            round_every=cluster.round_every,
            outer_lr=cluster.outer_lr,
            outer_momentum=cluster.outer_momentum,
            round_dtype=cluster.round_dtype,
            system=platform.system(),
        )

    def check(self, other: Identity) -> None:
        """Refuse this member beside another one.

        Raises:
            ConfigError: every difference, with both values and the way out.
        """
        problems = [
            f"cluster: {field.name} is {shown(own)} here and {shown(its)} on the other machines; "
            f"{_WAYS_OUT[field.name]}"
            for field in fields(self)
            if (own := getattr(self, field.name)) != (its := getattr(other, field.name))
        ]
        if problems:
            raise ConfigError("\n".join(problems) + f"; {_RESTART}")

    def to_json(self) -> str:
        """Canonical text: equal identities give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a text of `to_json`, of any version of mlxhog.

        Raises:
            ConfigError: it is not one; the other machine has another version.
        """
        try:
            return cls(**plain_json.loads(text))
        except (ValueError, TypeError):
            raise ConfigError(
                f"cluster: the other machines describe themselves as {shown(text)}, which mlxhog "
                f"{version('mlxhog')} does not know; {_WAYS_OUT['version']}; {_RESTART}"
            ) from None


def parameters_digest(layout: Layout) -> str:
    """SHA-256 of the parameters' names, shapes and places, in hexadecimal.

    The digest of the whole layout would depend on the number of workers.
    """
    places = [(slot.name, slot.shape, slot.offset) for slot in layout.slots.values()]
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()
