"""Models: stock transformers classes made bidirectional, and the policy that wraps them."""

from importlib.metadata import version

from stipule.models.versions import check_transformers

check_transformers(version("transformers"))  # before an import below fails on a name that an old version lacks
