"""The kernels in Triton, for tensors on CUDA; imported only when such a tensor comes."""
