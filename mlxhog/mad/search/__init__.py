"""Search over architectures: the space, what is tried next, what is stopped early."""
