"""Reports of a study: its progress, the leaderboard, plots, one page."""
