"""Everything that touches torch: loading, KV cache, attention, the step runner and sampling."""
