"""Studies: what an objective, an effort or a density buys, on real sets and several seeds."""
