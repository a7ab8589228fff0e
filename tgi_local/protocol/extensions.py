"""Fields of OpenAI's and other servers that their users send on /v1: honoured where the meaning is clear, else refused."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from tgi_local.errors import UnsupportedError
from tgi_local.protocol.wire import U32, WireModel

MAX_STOP_TOKENS = 1024

# Fields that change an answer and are not honoured, with the values that change nothing.
Refused = Mapping[str, tuple[Any, ...]]
REFUSED: Refused = {
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "logits_processors": ([],),
    "prompt_logprobs": (False,),
    "skip_special_tokens": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "smoothing_factor": (0,),
    "top_a": (0,),
    "tfs_z": (1,),
}
REFUSED_IN_CHAT: Refused = {
    **REFUSED,
    "chat_template": (),
    "modalities": (["text"], []),
    "web_search_options": (),
    "echo": (False,),
    "best_of": (1,),
    "add_special_tokens": (False,),
}
REFUSED_IN_COMPLETIONS: Refused = {**REFUSED, "add_special_tokens": (True,)}


class ExtensionFields(WireModel):
    """`truncate_prompt_tokens` is vLLM's name of `truncate`, `repeat_penalty` llama.cpp's of `repetition_penalty`.

    A token of `stop_token_ids` ends the answer and is not shown, like EOS, if it is a special one.
    """

    refused: ClassVar[Refused] = REFUSED

    stop_token_ids: Annotated[list[U32], Field(max_length=MAX_STOP_TOKENS)] | None = None
    include_stop_str_in_output: bool | None = False
    truncate_prompt_tokens: U32 | None = None
    repeat_penalty: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        if isinstance(body, Mapping):
            for name, neutral in cls.refused.items():
                value = body.get(name)
                if value is not None and value not in neutral:
                    raise UnsupportedError(f"`{name}` is not supported", param=name)
        return body
