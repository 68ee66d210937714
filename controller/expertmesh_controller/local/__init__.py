"""A whole mesh on one machine: one controller and its workers as child processes."""
