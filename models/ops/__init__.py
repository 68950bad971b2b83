"""Operators of models: the promise of each, its forms, and the choice among them."""
