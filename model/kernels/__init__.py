"""Hand-written kernels, each with the plain formula beside it that it is tested against (tests/test_kernels.py)."""
