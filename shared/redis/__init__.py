"""Redis: the clients, the subscription, sentinels, scripts sent together, and the epoch of its history."""
