"""A greedy client, a stranger or a crowd against a real API, and whoever is beside it."""
