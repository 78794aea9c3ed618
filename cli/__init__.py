"""What people type: `headway up`, `api`, `worker`, `submit`, `watch`, `tasks`."""

if __name__ != "headway.cli":  # a second copy of every module would have its own locks, caches and classes
    raise ImportError("Import headway.cli: this folder has no other name.")
