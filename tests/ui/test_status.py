from ui.client import Health
from ui.status import status_html


def test_the_model_is_named_with_its_facts() -> None:
    html = status_html(
        Health("ready"),
        {"model_id": "a/b", "model_dtype": "torch.bfloat16", "model_device_type": "cuda", "quantize": "nf4"},
    )
    assert "a/b" in html and "nf4 · bfloat16 · GPU" in html and "dot ready" in html and "Demo" not in html


def test_the_demo_says_so() -> None:
    assert "--model-id" in status_html(Health("ready"), {"model_id": "demo", "is_demo": True})


def test_loading_and_failing_are_told_apart() -> None:
    assert "Loading the model: reading weights" in status_html(Health("loading", "reading weights"), {})
    assert "dot bad" in status_html(Health("failed", "no such folder"), {})
    assert "does not answer" in status_html(Health("unreachable"), {})


def test_nothing_of_the_server_becomes_markup() -> None:
    assert "<script" not in status_html(Health("ready"), {"model_id": "<script>alert(1)</script>", "quantize": "<b>"})
    assert "<script" not in status_html(Health("loading", "<script>"), {})
