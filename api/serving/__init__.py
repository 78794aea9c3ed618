"""How the server runs: connections, deadlines, shutdown, and what is counted."""
