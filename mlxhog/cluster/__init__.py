"""Several machines that train one model: membership, rounds, the order of the data."""
