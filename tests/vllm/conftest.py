"""What holds for tests with vLLM itself."""

import os

# Four servers on a small machine: the keys and values of a few rows are enough.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
