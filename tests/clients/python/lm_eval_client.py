"""lm-eval: log-likelihoods and texts of a tiny task, through its models for OpenAI-like servers; results as JSON.

Arguments: the server's URL, the checkpoint's folder (its tokenizer), a task, a kind of model, its further arguments as JSON.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

url, checkpoint, task, kind, further = sys.argv[1:6]
TASKS = Path(__file__).parent / "lm_eval_tasks"
os.chdir(TASKS)  # the tasks name their data relative to it
route = "chat/completions" if "chat" in kind else "completions"
results = simple_evaluate(
    model=kind,
    model_args={"model": "tgi", "base_url": f"{url}/v1/{route}", "tokenizer": checkpoint, **json.loads(further)},
    tasks=[task],
    task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    apply_chat_template="chat" in kind,
    log_samples=True,
    bootstrap_iters=0,
)
samples = [sample["resps"] for sample in results["samples"][task]]
print(json.dumps({"samples": samples, "results": results["results"][task]}, default=str))
