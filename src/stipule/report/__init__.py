"""What people look at: the live display of a run. Never imports torch."""
