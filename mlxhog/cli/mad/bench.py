"""Score named architectures over a suite of tasks.

It is a study with a list of candidates, in which no run ends early. After a kill, the same line or
mad resume continues.

Examples:
    mad bench --layers "mlstm swiglu mlstm swiglu" --suite smoke
    mad bench --layers "(mlstm swiglu)*2" --layers "(gla swiglu)*2" --suite lite --seeds 3
    mad bench --config arch.yaml --suite full --parallel 2 --study mine
    mad bench --layers "(slstm swiglu)*2" --rates 5e-4,1e-3,2e-3

Main options:
    layers config suite tasks seeds rates dim steps backend workers parallel budget study
    dry_run json
"""

from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, command, option
from mlxhog.cli.mad.search import TRAINING, StudyOptions, begin
from mlxhog.config.sources import ConfigSource
from mlxhog.errors import ConfigError
from mlxhog.mad import api
from mlxhog.mad.options import ExecutionConfig


@dataclass(frozen=True, kw_only=True)
class _Bench(StudyOptions):
    layers: tuple[str, ...] = option((), "an architecture's layers", many=True, metavar="TEXT")
    config: tuple[str, ...] = option(
        (), "an architecture; both flags may be given several times",
        many=True, metavar="NAME_OR_FILE", short="c",
    )  # fmt: skip
    position: str | None = option(
        None, "positional embedding", choices=("none", "learned", "sincos"), none="its own"
    )


@command(overrides=TRAINING, writes=True)
def run(config: _Bench, overrides: ConfigSource, how: ExecutionConfig) -> CommandResult:
    recipe = api.recipe_of(overrides)
    if not config.layers and not config.config:
        raise ConfigError('give an architecture, as in mlxhog mad bench --layers "mlstm swiglu"')
    # These import NumPy: wrong flags are reported before.
    from mlxhog.models.mad.sequence import canonical, parse
    from mlxhog.models.registry import load_candidate

    files = {name: load_candidate(name) for name in config.config}
    widths = {config.dim or each.hidden_size for each in files.values()}
    positions = {config.position or each.position for each in files.values()}
    if len(widths) > 1 or len(positions) > 1:
        raise ConfigError(
            f"the architectures have widths {sorted(widths)} and positions "
            f"{sorted(positions)}; bench them one by one, or give --dim and --position"
        )
    layers = [*map(parse, config.layers), *(each.layers for each in files.values())]
    return begin(
        config, how, None, candidates=tuple(dict.fromkeys(map(canonical, layers))),
        suite=config.suite or "smoke", dim=widths.pop() if widths else config.dim,
        position=positions.pop() if positions else config.position or "none", recipe=recipe,
    )  # fmt: skip
