"""Reports of a study: the live board, the leaderboard, plots, one page."""
