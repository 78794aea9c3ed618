"""Inputs and results: on a shared disk or in a bucket, whole or absent."""
