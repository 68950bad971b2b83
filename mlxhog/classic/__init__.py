"""The Hogwild paper's own problems: sparse, convex, and fast enough to show what locks cost."""
