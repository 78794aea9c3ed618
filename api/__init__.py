"""The HTTP edge: takes files and requests in, relays progress out. Nothing here processes a file."""
