"""Carving a dense feed-forward block into shared and routed experts."""
