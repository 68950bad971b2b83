"""Checkpoints by their names on the Hugging Face hub: `hf:OWNER/NAME[/SUBFOLDER][@REVISION]`.

`fetch` gets config, safetensors and tokenizer, and nothing else, by the package `huggingface_hub`:
token, address and HF_HUB_OFFLINE are its own, and so is the cache, in which other programs find the
files, too. Whole files of an interrupted download are kept, and the next one gets the others.

The path of a snapshot in that cache says its name (`name_of`), so a path is all that is handed on.
"""

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mlxhog.base import plain_json, reading
from mlxhog.base.durable import disk_errors, require_space
from mlxhog.base.output import say_once
from mlxhog.base.quantities import format_bytes
from mlxhog.checkpoint.formats import weights
from mlxhog.data.records import package
from mlxhog.data.tokenizers import FILES
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks, MlxhogError, message_of

PREFIX, PACKAGE = "hf:", "'huggingface-hub>=2,<3'"
CONFIG, ADAPTER = "config.json", "adapter_config.json"
OF_ADAPTERS = ("adapter_model.safetensors", "adapters.safetensors")
"""Files of the tensors of an adapter, of PEFT and mlx-lm, which keeps those of some steps, too."""
LARGE_BYTES = 10**9
"""A larger download needs the user's consent."""
SHOWN_BYTES = 10**6  # of a file with a progress bar

SCALING_LAW_VOCAB, SCALING_LAW_TOKENIZER = 50_304, "hf:NX-AI/xLSTM-7b"
"""NX-AI's scaling-law checkpoints have this vocabulary and no tokenizer."""

_name = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?P<folder>(?:/[\w.-]+)*)/?(?:@(?P<at>[^@\s]+))?")
_is_commit = re.compile("[0-9a-f]{40}").fullmatch
_consent = {"yes": False, "quiet": False}


class HubName(NamedTuple):
    """A checkpoint on the hub."""

    repo: str  # OWNER/NAME
    folder: str  # below the repository, or ""
    revision: str  # a branch, a tag or a commit

    def inside(self, file: str) -> str:
        """Return the path of a file in the repository."""
        return f"{self.folder}/{file}".lstrip("/")


def is_name(spec: str) -> bool:
    """Whether a text names a checkpoint on the hub; it is never a path."""
    return spec.startswith(PREFIX)


def parse(spec: str) -> HubName:
    """Return the parts of a name, or raise a ConfigError."""
    match = _name.fullmatch(spec)
    if match is None or {".", ".."} & {*match["repo"].split("/"), *match["folder"].split("/")}:
        raise ConfigError(
            f"{spec!r} is not the name of a model on the Hugging Face hub; write "
            "hf:OWNER/NAME, such as hf:NX-AI/xLSTM-7b, then /SUBFOLDER or @REVISION if it has some"
        )
    return HubName(match["repo"], match["folder"].strip("/"), match["at"] or "main")


def name_of(path: Path) -> str | None:
    """Return the name of a path in the hub's cache, with the commit; None for other paths."""
    for place, part in enumerate(path.parts[:-2]):
        if part.startswith("models--") and path.parts[place + 1] == "snapshots":
            commit, *folder = path.parts[place + 2 :]
            repo = part.removeprefix("models--").replace("--", "/")
            return f"{PREFIX}{'/'.join([repo, *folder])}@{commit}"
    return None


def title(path: Path) -> str | None:
    """Return the name of a path in the hub's cache for people, without the commit."""
    name = name_of(path)
    return name and name.partition("@")[0]


@contextmanager
def consent(*, yes: bool, quiet: bool) -> Iterator[None]:
    """Permit large downloads in the block without a question, or show no progress."""
    before = dict(_consent)
    _consent.update(yes=yes, quiet=quiet)
    try:
        yield
    finally:
        _consent.update(before)


def fetch(spec: str, *, first: str = CONFIG) -> Path:
    """Return the folder of a checkpoint in the hub's cache, after downloading what it lacks.

    A commit that is in the cache needs no network. `first` is tokenizer.json for a tokenizer alone.
    An adapter has another config; its base is not fetched.

    Raises:
        ConfigError: it is no name, or the user does not consent to a large download.
        CheckpointError: there is no such model, it may not be read, or it has no safetensors.
        EnvironmentLacks: the hub cannot be reached and the cache has no whole copy, the disk is
            too small or became full, or the package is not installed.
    """
    name = parse(spec)
    hub: Any = package("huggingface_hub", spec, PACKAGE)
    for part in ("constants", "errors", "utils"):  # they are loaded at their first use
        package(f"huggingface_hub.{part}", spec, PACKAGE)
    hub.utils.logging.set_verbosity_error()  # its errors become ours
    folder = None
    for config in (first, ADAPTER) if first == CONFIG else (first,):
        file = hub.try_to_load_from_cache(name.repo, name.inside(config), revision=name.revision)
        folder = folder or (Path(file).parent if isinstance(file, str) else None)
    if folder is not None and first == CONFIG and not _is_whole(folder):
        folder = None
    offline = hub.constants.HF_HUB_OFFLINE
    if folder is not None and (offline or _is_commit(name.revision)):
        return folder
    if offline:
        raise EnvironmentLacks(
            f"{spec} is not in the cache {hub.constants.HF_HUB_CACHE}, or not whole, and "
            "HF_HUB_OFFLINE forbids to download it; unset it, or set HF_HUB_CACHE to another cache"
        )
    with _hub_errors(spec, name, hub), disk_errors(f"downloading {spec}", only_full=True):
        try:
            info = hub.HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        except Exception as error:
            # Who has lost access is told so; a copy is for a hub that does not answer.
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if folder is None or status < 500:
                raise
            why = message_of(error)
            say_once(f"no answer from the hub ({why}); {spec} is the copy in the cache")
            return folder
        return _download(spec, name, info, first, hub)


def _download(spec: str, name: HubName, info: Any, first: str, hub: Any) -> Path:
    """Get the files of a repository that are needed and not in the cache; return their folder.

    They come one after the other, so Ctrl-C ends them at once.
    """
    files = {
        one.rfilename.removeprefix(f"{name.folder}/"): one.size or 0
        for one in info.siblings or ()
        if one.rfilename.rpartition("/")[0] == name.folder
    }
    first = ADAPTER if first == CONFIG and _is_adapter(files) else first
    wanted = [*dict.fromkeys(one for one in (first, *FILES) if one in files)]
    if first in (CONFIG, ADAPTER):
        wanted += _tensors(spec, files)
    if first not in files:
        raise CheckpointError(
            f"{spec} has no {first}; name a model of transformers' xLSTM, of the xlstm package or "
            "of mlxhog, and its subfolder if it has some"
        )
    n_bytes = 0
    for one in wanted:
        file = hub.try_to_load_from_cache(name.repo, name.inside(one), revision=info.sha)
        n_bytes += 0 if isinstance(file, str) else files[one]
    if n_bytes:
        cache = Path(hub.constants.HF_HUB_CACHE).absolute()
        disk = next(one for one in (cache, *cache.parents) if one.is_dir())
        require_space(disk, n_bytes, f"the download of {spec}")
        _ask(spec, n_bytes, _license(info))
    # The first stores which commit the revision is now; the others are of that commit.
    commit = name.revision
    for one in wanted:
        bar = _progress_bar(hub, one, files[one])
        file = hub.hf_hub_download(name.repo, name.inside(one), revision=commit, tqdm_class=bar)
        commit = str(name_of(Path(file))).rpartition("@")[2]
    return Path(file).parent


def tokenizer_folder(folder: Path) -> Path:
    """Return the folder of a checkpoint's tokenizer, another one for a scaling-law checkpoint."""
    has_own = (folder / FILES[0]).is_file() or name_of(folder) is None
    if has_own or not (folder / "model_0.safetensors").is_file():
        return folder
    fields = plain_json.loads(reading.read_small(folder / CONFIG))
    if "embedding_dim" not in fields or fields.get("vocab_size") != SCALING_LAW_VOCAB:
        return folder
    return fetch(SCALING_LAW_TOKENIZER, first=FILES[0])


def _is_adapter(files: Collection[str]) -> bool:
    """Whether files are those of an adapter; one of mlxhog has the model's config, too."""
    return ADAPTER in files and (CONFIG not in files or any(one in files for one in OF_ADAPTERS))


def _is_whole(folder: Path) -> bool:
    files = {one.name for one in folder.iterdir() if one.is_file()}
    if _is_adapter(files):
        return not files.isdisjoint(OF_ADAPTERS)
    try:
        file = weights.find(folder)
        return file.name not in OF_ADAPTERS and bool(weights.parts(file))
    except CheckpointError:
        return False


def _tensors(spec: str, files: Collection[str]) -> list[str]:
    """Return the files of tensors to get, of those that `weights.find` would choose from.

    The file by which it knows a checkpoint comes last, so half a download is never a whole one.
    """
    tensors = sorted((one for one in files if one.endswith(".safetensors")), reverse=True)
    if _is_adapter(files):
        tensors = [one for one in tensors if one in OF_ADAPTERS]
    elif weights.MODEL in tensors:
        tensors = [weights.MODEL]
    elif weights.INDEX in files:
        tensors = [*filter(weights.shard, tensors), weights.INDEX]
    elif "model_0.safetensors" in tensors:
        tensors = [one for one in tensors if one.startswith("model_")]
    if not tensors:
        pickles = [one for one in files if one.endswith(weights.ENDINGS)]
        has = f"only {weights.listed(pickles)}" if pickles else "no weights"
        raise CheckpointError(
            f"{spec} has {has}, and only safetensors are downloaded, because a pickle can run any "
            "program; name a revision or another repository with safetensors"
        )
    return tensors


def _license(info: Any) -> str:
    data: Mapping[str, Any] = info.card_data.to_dict() if info.card_data else {}
    return str(data.get("license_name") or data.get("license") or "not stated")


def _ask(spec: str, n_bytes: int, license: str) -> None:
    """Show size and license of a download; one of more than `LARGE_BYTES` needs consent."""
    about = f"{spec}: {format_bytes(n_bytes)} to download, license {license}"
    if n_bytes <= LARGE_BYTES or _consent["yes"]:
        if not _consent["quiet"]:
            say_once(about)
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        repo = parse(spec).repo
        raise ConfigError(f"{about}; add --yes to download it, or do so before: hf download {repo}")
    print(f"{about}; download it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError(f"{spec} was not downloaded")


def _progress_bar(hub: Any, file: str, n_bytes: int) -> Any:
    """Return the package's bar on the terminal itself, since our streams keep no line ends."""
    options: dict[str, Any] = {"desc": file, "file": sys.__stderr__}
    if _consent["quiet"] or n_bytes < SHOWN_BYTES:
        options["disable"] = True

    class Bar(hub.utils.tqdm):  # type: ignore[misc]  # of a package without types here
        def __init__(self, *args: Any, **others: Any) -> None:
            super().__init__(*args, **others | options)

    return Bar


@contextmanager
def _hub_errors(spec: str, name: HubName, hub: Any) -> Iterator[None]:
    """Turn errors of the package into a sentence with the way out."""
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except MlxhogError:
        raise
    except hub.errors.GatedRepoError as error:
        raise CheckpointError(
            f"{spec} is gated: accept its terms at {hub.constants.ENDPOINT}/{name.repo}, then "
            f"{login}"
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no model {name.repo} on the hub, or it is private; check its name, or "
            f"{login}"
        ) from error
    except hub.errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{spec}: {name.repo} has no revision {name.revision!r}; leave it out for the newest"
        ) from error
    except Exception as error:  # the network, its libraries and the disk raise errors of any type
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        way = login if refused else "run the command again, which keeps the files that are whole"
        raise EnvironmentLacks(
            f"{spec} cannot be downloaded: {message_of(error)}; {way}"
        ) from error
