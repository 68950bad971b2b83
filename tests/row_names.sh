# Names for scripts that type mlxhog's commands from outside, where a name may change: VAL_TOKENS,
# RESEARCH, LEADERBOARD, CONSENSUS, OUTPUT, STRAGGLERS, TASK_SET, RECORD, VAL_BITS, LR_FLOOR.
VAL_TOKENS=--val-subset-tokens LR_FLOOR=--min-lr-ratio RESEARCH=research
LEADERBOARD="mad leaderboard" CONSENSUS="mad consensus" OUTPUT=--output
STRAGGLERS=--inject-stragglers TASK_SET=--task-set
