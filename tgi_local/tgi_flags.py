"""TGI's launch flags that mean nothing here, or can not be honoured yet: accepted with a log line, or refused by name.

Whoever ran TGI keeps the command line and the container's variables; no variable of the first kind breaks a start.
"""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, CliSuppress

# Why each of these changes nothing.
NO_EFFECT: Final = {
    "waiting_served_ratio": "prefill and decode share every step",
    "max_waiting_tokens": "prefill and decode share every step",
    "disable_custom_kernels": "there are none",
    "prometheus_port": "metrics are served on the server's own port, at /metrics",
    "weights_cache_override": "weights are read from the hub's cache, see --huggingface-hub-cache",
    "otlp_endpoint": "no traces are sent",
    "otlp_service_name": "no traces are sent",
    "usage_stats": "nothing is ever sent",
    "shard_uds_path": "there are no shards",
    "master_addr": "there are no shards",
    "master_port": "there are no shards",
    "sharded": "there are no shards",
    "num_shard": "there are no shards",
    "enable_prefill_logprobs": "log-probabilities of the prompt are always available",
    "max_image_fetch_size": "no address is ever fetched",
}

# Variables that a platform sets in its containers, where it alone reaches them and knows who may.
PLATFORMS: Final = {
    "Vertex AI": ("aip_http_port", "aip_predict_route", "aip_health_route"),
    "Amazon SageMaker": (
        "sagemaker_bind_to_port",
        "sagemaker_safe_port_range",
        "sagemaker_base_dir",
        "sagemaker_submit_directory",
        "sagemaker_container_log_level",
        "sm_num_gpus",
    ),
}

# Why each of these is refused.
NOT_SUPPORTED: Final = {
    "trust_remote_code": "Python code of a model is never run here; choose a model whose architecture Transformers knows",
    "sharded": "one server uses one GPU",
    "num_shard": "one server uses one GPU",
    "kv_cache_dtype": "the KV cache has the number format of the weights",
    "speculate": "there is no speculative decoding",
    "rope_scaling": "positions are scaled as the checkpoint's config.json says",
    "rope_factor": "positions are scaled as the checkpoint's config.json says",
    "lora_adapters": "no adapters can be loaded",
}

# Values that ask for nothing more than what happens anyway.
_NEUTRAL: Final = {
    "sharded": ("false",),
    "num_shard": ("1",),
    "speculate": ("0",),
}


_ROUTE: Final = r"^/[A-Za-z0-9_./:~-]{1,511}$"  # a path that stands for itself alone


def _lenient_bool(value: Any) -> bool:
    """Any value of a variable will do for a switch that changes nothing."""
    return str(value).strip().lower() not in ("", "0", "false", "no", "off")


Hidden = CliSuppress[str | None]
HiddenSwitch = CliSuppress[Annotated[bool, BeforeValidator(_lenient_bool)]]


class TgiFlags(BaseSettings):
    """Hidden in --help, listed in docs/reference/flags.md."""

    waiting_served_ratio: Hidden = Field(None, description="ratio of waiting to running requests before a prefill")
    max_waiting_tokens: Hidden = Field(None, description="tokens a waiting request is held back for at most")
    disable_custom_kernels: HiddenSwitch = Field(False, description="do without TGI's CUDA kernels")
    prometheus_port: Hidden = Field(None, description="port that TGI reserves for metrics")
    weights_cache_override: Hidden = Field(None, description="folder of weights for offline use")
    otlp_endpoint: Hidden = Field(None, description="where traces are sent")
    otlp_service_name: Hidden = Field(None, description="name under which traces are sent")
    usage_stats: Hidden = Field(None, description="what TGI reports about its use: on, off or no-stack")
    shard_uds_path: Hidden = Field(None, description="socket between TGI's router and its shards")
    master_addr: Hidden = Field(None, description="address of the first shard")
    master_port: Hidden = Field(None, description="port of the first shard")
    sharded: Hidden = Field(None, description="split the model over several GPUs; only false")
    num_shard: Hidden = Field(None, description="number of GPUs to split the model over; only 1")
    enable_prefill_logprobs: HiddenSwitch = Field(False, description="allow decoder_input_details")
    max_image_fetch_size: Hidden = Field(None, description="largest image to fetch, in bytes")

    trust_remote_code: CliSuppress[bool] = Field(False, description="run Python code of the model's repository")
    kv_cache_dtype: Hidden = Field(None, description="number format of the KV cache")
    speculate: Hidden = Field(None, description="length of speculated text; only 0")
    rope_scaling: Hidden = Field(None, description="how positions are scaled for longer contexts")
    rope_factor: Hidden = Field(None, description="factor by which positions are scaled")
    lora_adapters: Hidden = Field(None, description="adapters to load")

    # Variables that cloud platforms set; a flag of the same name works, but nobody needs it.
    aip_http_port: CliSuppress[int | None] = Field(None, ge=0, le=65535, description="Vertex AI: overrides --port")
    aip_predict_route: Hidden = Field(None, pattern=_ROUTE, description="Vertex AI: a second path for /vertex")
    aip_health_route: Hidden = Field(None, pattern=_ROUTE, description="Vertex AI: a second path for /health")
    hf_model_id: Hidden = Field(None, description="SageMaker: as MODEL_ID")
    hf_model_revision: Hidden = Field(None, description="SageMaker: as REVISION")
    hf_model_quantize: Hidden = Field(None, description="SageMaker: as QUANTIZE")
    hf_model_trust_remote_code: Hidden = Field(None, description="SageMaker: as TRUST_REMOTE_CODE")

    sm_num_gpus: Hidden = Field(None, description="SageMaker: as NUM_SHARD")
    sagemaker_bind_to_port: CliSuppress[int | None] = Field(
        None, ge=0, le=65535, description="SageMaker: overrides --port"
    )
    sagemaker_safe_port_range: Hidden = Field(None, description="SageMaker: ports that a container may use")
    sagemaker_base_dir: Hidden = Field(None, description="SageMaker: where it puts a model's files")
    sagemaker_submit_directory: Hidden = Field(None, description="SageMaker: where its SDK puts code, which is not run")
    sagemaker_container_log_level: Hidden = Field(None, description="SageMaker: its SDK's log level")

    @property
    def notes(self) -> list[str]:
        """One line for each flag that was given and changes nothing."""
        return [
            f"--{name.replace('_', '-')} ({name.upper()}) has no effect here: {reason}"
            for name, reason in NO_EFFECT.items()
            if name in self.model_fields_set
        ] + (
            [f"SM_NUM_GPUS {self.sm_num_gpus}: one server uses one GPU"] if self.sm_num_gpus not in (None, "1") else []
        )

    @model_validator(mode="after")
    def _refuse_what_is_not_supported(self) -> "TgiFlags":
        for name, reason in NOT_SUPPORTED.items():
            value = getattr(self, name)
            if value and str(value).strip().lower() not in _NEUTRAL.get(name, ()):
                raise ValueError(
                    f"--{name.replace('_', '-')} ({name.upper()}) is not supported: {reason}; leave it out"
                )
        return self
