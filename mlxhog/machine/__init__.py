"""This machine: its cores and memory, the workers that suit it, doctor's verdicts, processes."""
