"""What a model can do, with intervals."""
