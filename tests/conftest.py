"""Settings that must stand before any framework is imported."""

import os

# Needs the old libraries.
collect_ignore = ["old_files"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("OMP_NUM_THREADS", "1")
