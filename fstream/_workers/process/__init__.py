"""Worker processes: the parent's side, the worker's side, and what goes between the two."""
