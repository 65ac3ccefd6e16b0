"""Output for users: tables, figures, the live display and the report page of a run. Only three tables import torch."""
