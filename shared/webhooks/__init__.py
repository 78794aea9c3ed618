"""Telling others of the end of a task: the outbox in Redis, addresses, signatures; worker/webhook_sender.py sends."""
