"""One thread a process, Ctrl-C as it comes, and how many examples hypothesis tries: `fast` unless `--hypothesis-profile slow` is said."""
import os
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background are born deaf to it, and so are their children
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; sums depend on it, and the workers of `make test` share the cores

from hypothesis import settings

settings.register_profile("fast", max_examples=100, deadline=None)
settings.register_profile("slow", max_examples=500, deadline=None)
settings.load_profile("fast")
