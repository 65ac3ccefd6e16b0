"""Likelihood estimators: which tokens to mask, and how to combine their log-probabilities."""
