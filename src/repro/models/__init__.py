"""The models and their parts."""

import logging

# On CPUs with AVX512-BF16 bitsandbytes asks in every process for a kernel from the hub. adapters.py never takes that path: its gradients
# are wrong (the guard there).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
