"""Output for users: tables, figures, the live display and the report page of a run. No file here imports torch."""
