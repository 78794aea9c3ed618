"""What the API and the worker agree on: settings, keys, models, the progress channel, the queue, the files."""
