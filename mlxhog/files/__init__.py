"""Files that appear whole or not at all, locks, and readers that bound what a file may cost."""
