"""Views of a run for people: lines, tables, charts."""
