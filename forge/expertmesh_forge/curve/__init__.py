"""Quality against the share of neurons evaluated, beside baselines that spend as much."""
