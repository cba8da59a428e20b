"""These tests run in a process of their own, which tests/kernels/test_triton.py starts with TRITON_INTERPRET=1: the variable must
be set before anything imports triton. By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
