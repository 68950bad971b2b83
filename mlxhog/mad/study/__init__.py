"""A study: which runs it consists of, their store, the scheduler, and who executes them."""
