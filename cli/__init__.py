"""What people type: `headway up`, `api`, `worker`, `submit`, `watch`, `tasks`."""
