"""What the API and the worker agree on: settings, keys, models, the progress channel, the queue, the files."""

if __name__ != "headway.shared":  # a second copy of every module would have its own locks, caches and classes
    raise ImportError("Import headway.shared: this folder has no other name.")
