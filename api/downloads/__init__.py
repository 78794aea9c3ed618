"""Files on their way out: ranges, preconditions, sendfile, and exports made while they are sent."""
