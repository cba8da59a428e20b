"""Kernels in C++ for CPUs, compiled at first use with g++ and called through their C interface."""
