"""Models: stock transformers classes made bidirectional, and the policy that wraps them."""
