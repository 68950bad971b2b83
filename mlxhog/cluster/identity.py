"""What the members of a cluster must have in common; compared when a machine joins."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any, Self

from mlxhog.arena import Layout
from mlxhog.base import plain_json
from mlxhog.config.cluster import Cluster
from mlxhog.errors import ConfigError, shown

_RESTART = "if all of them have left, restart mlxhog cluster start"  # it keeps the first identity
_VERSION = "install the same version of mlxhog on all machines"


def _same(options: str) -> Any:
    """A field whose difference is cured by equal options."""
    return field(metadata={"way_out": f"give all machines the same {options}"})


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be equal on all members.

    Attributes:
        layout: digest of the names, shapes and places of the parameters.
        tokenizer: digest of the tokenizer.
        data: digest of the training text, with the length of a sequence.
        batch_size: sequences of a batch; the order of the data counts batches.
        seed: of initial values and of the order of the data.
        round_dtype: type of the numbers on the wire.
    """

    version: str = field(metadata={"way_out": _VERSION})
    layout: str = _same("--model and --set")
    tokenizer: str = _same("--tokenizer, such as a tokenizer.json")
    data: str = _same("--data and --seq-len")
    batch_size: int = _same("--batch-size and --grad-accumulation")
    seed: int = _same("--seed")
    round_every: float = _same("--round-every")
    outer_lr: float = _same("--cluster-outer-lr")
    outer_momentum: float = _same("--cluster-outer-momentum")
    round_dtype: str = _same("--round-dtype")
    system: str = field(
        metadata={
            "way_out": "Gloo cannot mix macOS and Linux (pytorch/gloo#383); take machines of one "
            "system"
        }
    )

    @classmethod
    def of(cls, cluster: Cluster, layout: Layout, **of_run: Any) -> Self:
        """Describe this machine's run; numbers of its own, such as its workers, do not count.

        Args:
            cluster: the choice of the run.
            layout: of the arena.
            of_run: tokenizer, data, batch_size and seed.
        """
        return cls(
            version=version("mlxhog"),
            layout=parameters_digest(layout),
            system=platform.system(),
            round_every=cluster.round_every,
            outer_lr=cluster.cluster_outer_lr,
            outer_momentum=cluster.cluster_outer_momentum,
            round_dtype=cluster.round_dtype,
            **of_run,
        )

    def check(self, other: Identity) -> None:
        """Refuse this member beside another one.

        Raises:
            ConfigError: every difference, with both values and the way out.
        """
        problems = [
            f"cluster: {part.name} is {shown(own)} here and {shown(its)} on the other machines; "
            f"{part.metadata['way_out']}"
            for part in fields(self)
            if (own := getattr(self, part.name)) != (its := getattr(other, part.name))
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
                f"{version('mlxhog')} does not know; {_VERSION}; {_RESTART}"
            ) from None


def parameters_digest(layout: Layout) -> str:
    """SHA-256 of the parameters' names, shapes and places, in hexadecimal.

    The digest of the whole layout would depend on the number of workers.
    """
    places = [(slot.name, slot.shape, slot.offset) for slot in layout.slots.values()]
    return hashlib.sha256(json.dumps(places).encode()).hexdigest()
