"""The running of tasks. Nothing here knows HTTP."""

if __name__ != "headway.worker":  # a second copy of every module would have its own locks, caches and classes
    raise ImportError("Import headway.worker: this folder has no other name.")
