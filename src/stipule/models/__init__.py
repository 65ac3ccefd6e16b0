"""Models: stock transformers classes made bidirectional, and the policy that wraps them."""

from importlib.metadata import version

from stipule.models.versions import check_transformers

check_transformers(version("transformers"))  # before anything here asks transformers for what an old one lacks
