"""Tasks: problems, prompts, graders, and the spans of a response that may not become anchors."""
