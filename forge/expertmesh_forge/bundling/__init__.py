"""From a carved model to a bundle on disk."""
