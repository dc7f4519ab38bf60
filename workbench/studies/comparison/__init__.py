"""Runs side by side: notebook 12."""
