"""Reading a run's weights while it trains, or a checkpoint's, in one way.

mode                 what a reader gets of a run that trains             they change
double_buffer        the copy that the run published last                between tokens
pinned_per_sequence  the same                                            between sequences
snapshot             the whole model between two updates                 between tokens
tensor               each tensor between two updates                     between tokens
racy                 the shared parameters as they are being written     between tokens
"""

READ_MODES = ("double_buffer", "pinned_per_sequence", "snapshot", "tensor", "racy")
"""The default first."""

CHECKPOINT = "checkpoint"
MODES = (*READ_MODES, CHECKPOINT)
"""What commands take: a read mode, or the newest checkpoint of a run although it trains."""
