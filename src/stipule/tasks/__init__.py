"""Tasks: what is asked, what a response is worth, which parts of it may never be fixed."""
