"""A module that a processor imports late."""

WORD = "beside"
