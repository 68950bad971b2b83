"""A server with OpenAI's HTTP interface to a checkpoint, or to a run while it trains."""
