"""Small pure text machines: tokenizer, chat template, detokenizer, stop strings, reasoning, tool calls."""
