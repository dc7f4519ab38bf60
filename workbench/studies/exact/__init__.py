"""A world small enough to sum over all completions: notebook 11."""
