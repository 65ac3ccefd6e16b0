"""The report page of a run folder: one HTML file that needs no network, no server and no torch."""
