"""Hand-written kernels. Each has its plain `formula` beside it, against which tests/test_kernels.py compares it."""
