"""Search over architectures: the space, the samplers, the pruning of runs."""
