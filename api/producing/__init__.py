"""Tasks that outside producers run: what they report, and how it becomes the task's state."""
