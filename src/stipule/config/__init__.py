"""Reads recipes and evaluation protocols from YAML files into dataclasses."""
