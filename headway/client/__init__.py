"""The Python client: it knows the platform by its HTTP interface alone, and imports nothing else of ours."""
