"""Reading a model while it trains or after: sampling and generation."""
