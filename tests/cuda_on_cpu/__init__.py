"""Builds csrc/cuda with g++ against the headers of this folder, so that its kernels run without a GPU."""
