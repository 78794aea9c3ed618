"""The running of tasks. Nothing here knows HTTP."""
