"""One model from several machines: rounds of an outer optimizer between their arenas."""
