"""One BLAS thread per test process: the models are tiny, and as many processes run as there are cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
