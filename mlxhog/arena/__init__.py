"""The arena: a model's parameters, once, in memory that every worker process maps."""

from mlxhog.arena.arena import Arena, ArenaHandle
from mlxhog.arena.layout import Layout, Slot, plan

__all__ = ["Arena", "ArenaHandle", "Layout", "Slot", "plan"]
