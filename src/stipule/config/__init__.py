"""Recipes and evaluation protocols: YAML files read into dataclasses."""
