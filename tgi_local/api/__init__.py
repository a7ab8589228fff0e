"""The HTTP side: routes, SSE, error bodies and the security gate."""
