"""tgi-local: a language model served from one machine behind TGI's and OpenAI's HTTP APIs."""

__version__ = "0.1.0"
