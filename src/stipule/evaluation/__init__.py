"""Evaluates models, compares evaluations, and measures estimators."""
