"""What this machine is and what it gives to workers: cores, caches, verdicts, processes."""
