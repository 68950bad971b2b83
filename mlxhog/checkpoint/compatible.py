"""Whether a checkpoint has the architecture and the tokenizer with which it is to be used."""

from collections.abc import Set

from mlxhog.base import plain_json
from mlxhog.checkpoint.checkpoint import Checkpoint
from mlxhog.config import plugins
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import CheckpointError
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.xlstm_large import SPELLINGS, XLSTMLargeConfig

NOT_ARCHITECTURE = XLSTMLargeConfig.ignored | {
    "chunk_size", "bos_token_id", "zero_init_residual", plugins.KEY,
}  # fmt: skip
"""Fields of config.json that change no equation of trained parameters, among them files of layers,
whose digests are compared when they are loaded."""


def check_architecture(
    checkpoint: Checkpoint, model: ModelConfig, ignored: Set[str] = frozenset()
) -> None:
    """Raise CheckpointError, with all differences, unless a model is the checkpoint's."""
    several = differences(checkpoint.model, model, ignored)
    if not families.same_adapter(checkpoint.model, model):
        there, here = (
            "no adapter" if one.adapter is None else one.adapter.title
            for one in (checkpoint.model, model)
        )
        several.append(f"it trains {there} there and {here} here, or other layers of it")
    if several:
        raise CheckpointError(
            f"{checkpoint.path} has another architecture: {'; '.join(several)}; "
            "resume with the model it was trained with, or start a new run"
        )


def differences(there: ModelConfig, here: ModelConfig, ignored: Set[str]) -> list[str]:
    """Return the differences of two architectures, some fields ignored, for a message."""
    if there.model_type != here.model_type:
        return [f"it is of the family {there.title}, the model of {here.title}"]
    theirs, ours = (plain_json.loads(plain_json.dumps(one.to_dict())) for one in (there, here))
    unread = {name for name in (*there.extra, *here.extra) if not name.endswith("_block")}
    spelt = SPELLINGS.keys() if "hidden_size" in ours else ()  # two names in transformers' files
    names = sorted((theirs.keys() | ours.keys()) - ignored - NOT_ARCHITECTURE - unread - {*spelt})
    return [
        _difference(name, theirs.get(name), ours.get(name))
        for name in names
        if theirs.get(name) != ours.get(name)
    ]


def _difference(field: str, there: object, here: object) -> str:
    if isinstance(there, list) and isinstance(here, list) and field == "layers":
        if len(there) != len(here):
            return f"{field} has {len(there)} items there and {len(here)} here"
        at = next(k for k in range(len(here)) if there[k] != here[k])
        field, there, here = f"{field}[{at}]", there[at], here[at]
    return f"{field} is {there!r} there and {here!r} here"


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raise CheckpointError, with both digests, unless a tokenizer is the checkpoint's."""
    saved = checkpoint.tokenizer
    if (saved.sha256, saved.bos) != (tokenizer.sha256, tokenizer.bos):
        raise CheckpointError(
            f"{checkpoint.path} was trained with tokenizer {saved.name} {saved.sha256}, "
            f"the data has {tokenizer.name} {tokenizer.sha256}; use the same tokenizer"
        )
