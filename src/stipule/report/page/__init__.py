"""A run folder as one page that needs nothing else: no network, no server, no torch."""
