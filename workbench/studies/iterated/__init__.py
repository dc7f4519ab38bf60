"""Rounds of labelling and training: notebook 13."""
