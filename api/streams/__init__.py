"""Event streams: from the relay's subscription to each client's connection."""
