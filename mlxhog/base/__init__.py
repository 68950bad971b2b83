"""What every other part stands on: files, quantities, processes, and facts of the machine."""
