"""A study: its definition, its store, the scheduler, and the workers."""
