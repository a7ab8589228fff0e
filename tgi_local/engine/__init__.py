"""Continuous batching: sequences, KV block accounting, scheduling and the thread that runs it. No torch."""
