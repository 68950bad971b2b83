"""The arena: one copy of a model's parameters, in memory that every worker process maps."""

from mlxhog.arena.arena import Arena, ArenaHandle
from mlxhog.arena.layout import Layout, Slot, plan

__all__ = ["Arena", "ArenaHandle", "Layout", "Slot", "plan"]
