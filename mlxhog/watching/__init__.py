"""Looking at runs from outside: what their folders say, a live table, a board, a report."""
