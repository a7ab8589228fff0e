"""`tgi-local bench`: a load generator for any server that speaks OpenAI's completions or chat."""
