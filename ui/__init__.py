"""The chat page: a client of the HTTP API and nothing else. It imports no engine, no model and no service."""
