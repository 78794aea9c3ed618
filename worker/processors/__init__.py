"""The built-in processors, one file each, found by the same entry points as anybody's."""
