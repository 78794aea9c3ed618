"""Tasks: their data, the channel of their progress, the queue of their jobs, the contract of processors."""
