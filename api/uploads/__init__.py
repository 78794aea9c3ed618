"""Files on their way in: forms, raw bodies, resumable uploads, and what is checked before a task is queued."""
