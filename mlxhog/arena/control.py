"""The words by which supervisor and workers talk: names of the arena's counters.

command         what workers should be doing now (`Command`); the supervisor writes it
start_ns        when training started, monotonic; the supervisor writes it once all are ready
limit_ns        how long training may take, known when it starts; 0 where time does not limit it
pause           1 while the arena has to hold still for a checkpoint
steps           steps taken by this call, dropped ones included, as workers report them: that of a
                worker that died before its report is missing until `Strategy.settle`
version         updates applied to the parameters, since the model was initialised
tokens          tokens computed by this call
first_ticket    where synchronous rounds begin, counted from the beginning of training
end_ticket      likewise, where the budget ends for strategies that take any free ticket; 0 nowhere
tickets_before  tickets that were done before this call
eval_asked      evaluations of the held-out text asked for while training
eval_taken      evaluations a worker has taken on
eval_next       next batch of the final evaluation, plus `EVAL_ROUND` times the number of the round
                (a new one begins if a worker dies): one word, so no batch falls between two rounds
eval_first      the round in which that evaluation began: what was done since then counts
side_until_ns   when evaluations and samples after training have to end, monotonic; 0 is never
sample_asked    samples of text asked for
sample_taken    samples a worker has taken on
"""

from enum import IntEnum

EVAL_ROUND = 1 << 32


class Command(IntEnum):
    """What the supervisor wants from every worker."""

    WAIT = 0
    TRAIN = 1
    REST = 2  # finish the step in hand and the round it is part of, then hold still
    EVALUATE = 3
    SAMPLE = 4
    EXIT = 5
