"""Files that appear whole or not at all, file locks, and readers with limits on memory and time."""
