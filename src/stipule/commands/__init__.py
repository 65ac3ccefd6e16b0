"""The programs behind the commands `quickstart`, `variance` and `export`, which combine several rooms."""
