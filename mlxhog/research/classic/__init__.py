"""The Hogwild paper's own problems, solved by several processes on one arena."""
