"""One worker process: gradients, steps, and its background tasks."""
