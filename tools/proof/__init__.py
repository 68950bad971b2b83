"""Model checking of native code: every interleaving of a few threads."""
