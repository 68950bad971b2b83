"""Operators that models are made of: what each promises, its forms, and the choice among them."""
