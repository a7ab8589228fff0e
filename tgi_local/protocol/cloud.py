"""What cloud platforms send and expect: Vertex AI's predictions and KServe's open inference protocol, version 2."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag

from tgi_local.errors import BodyShapeError
from tgi_local.protocol.openai import ChatRequest
from tgi_local.protocol.tgi import GenerateParameters, GenerateRequest, to_parameters
from tgi_local.protocol.wire import U32, U64, WireModel
from tgi_local.types import RequestParameters, TextOptions

MAX_INSTANCES = 1024
MAX_SHOWN_NAME = 256

Byte = Annotated[int, Field(ge=0, le=255)]


class VertexParameters(WireModel):
    """The parameters of a native instance that count; the others are ignored, as TGI does."""

    max_new_tokens: U32 | None = None
    seed: U64 | None = None


class GenerateInstance(WireModel):
    inputs: str
    parameters: VertexParameters = VertexParameters()

    @property
    def native(self) -> RequestParameters:
        """Sampling is always on."""
        p = self.parameters
        return RequestParameters(do_sample=True, max_new_tokens=p.max_new_tokens, seed=p.seed)


def _kind(instance: Any) -> str:
    """In brackets, as error messages leave out what stands in brackets."""
    return "[native]" if isinstance(instance, dict) and "inputs" in instance else "[chat]"


Instance = Annotated[
    Annotated[GenerateInstance, Tag("[native]")] | Annotated[ChatRequest, Tag("[chat]")], Discriminator(_kind)
]


class VertexRequest(WireModel):
    """Body of /vertex."""

    instances: Annotated[list[Instance], Field(max_length=MAX_INSTANCES)]


def raw_text(parameters: RequestParameters) -> RequestParameters:
    """An instance's answer is one text: tool calls and thoughts stay in it."""
    return replace(parameters, text=TextOptions(keep_stop_string=True))


class InferInput(WireModel):
    """A prompt, as the bytes of its UTF-8 text or as the text itself."""

    name: str
    shape: list[int] | None = None
    datatype: str = "BYTES"
    data: list[Byte] | list[str]

    @property
    def text(self) -> str:
        """Raises BodyShapeError for bytes that are no text."""
        if self.data and isinstance(self.data[0], str):
            return "".join(str(part) for part in self.data)
        try:
            return bytes(self.data).decode()  # type: ignore[arg-type]
        except UnicodeDecodeError:
            raise BodyShapeError("inputs: data is not UTF-8 at line 1 column 1", param="inputs") from None


class InferOutput(WireModel):
    name: str


class InferRequest(WireModel):
    """Body of KServe's infer route."""

    id: str | None = None
    parameters: GenerateParameters = GenerateParameters()
    inputs: list[InferInput]
    outputs: list[InferOutput]

    @property
    def native(self) -> RequestParameters:
        return to_parameters(GenerateRequest(inputs="", parameters=self.parameters))


def infer_response(body: InferRequest, texts: Sequence[str]) -> dict[str, Any]:
    outputs = []
    for output, text in zip(body.outputs, texts, strict=True):
        data = list(text.encode())
        shape = [1, len(data)]
        outputs.append({"name": output.name, "shape": shape, "datatype": "BYTES", "data": data})
    return {"id": body.id, "outputs": outputs}


def server_metadata(version: str) -> dict[str, Any]:
    return {"name": "text-generation-inference", "version": version, "extensions": ["health", "models", "metrics"]}


def model_metadata(name: str, version: str) -> dict[str, Any]:
    """TGI serves its one model under any name."""
    return {"name": name[:MAX_SHOWN_NAME], "version": version[:MAX_SHOWN_NAME], "extensions": ["infer", "ready"]}


class VertexResponse(BaseModel):
    predictions: list[str]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ModelMetadata(ServerMetadata):
    pass


class Liveness(BaseModel):
    live: bool


class InferredOutput(BaseModel):
    """The text as the bytes of its UTF-8 form."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Byte]


class InferResponse(BaseModel):
    id: str | None
    outputs: list[InferredOutput]
