"""Likelihood estimators: what to hide, and how to add it up."""
