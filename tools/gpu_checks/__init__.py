"""What `tools/gpu_check.py` checks and measures. Needs torch, transformers, numpy and psutil, nothing else of ours."""
