"""Views of runs and results: lines, tables, charts, pages, a dashboard."""
