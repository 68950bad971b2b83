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

from mlxhog.cli.frame import CommandResult, command
from mlxhog.cli.mad.search import TRAINING, SessionOptions, run_session
from mlxhog.config.sources import ConfigSource
from mlxhog.mad import api
from mlxhog.mad.options import BenchOptions, ExecutionConfig


@dataclass(frozen=True, kw_only=True)
class _Bench(SessionOptions, BenchOptions):
    pass


@command(overrides=TRAINING, writes=True)
def run(config: _Bench, overrides: ConfigSource, how: ExecutionConfig) -> CommandResult:
    return run_session(api.new_bench(config, api.recipe_of(overrides), how), how, config)
