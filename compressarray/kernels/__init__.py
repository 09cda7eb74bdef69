"""How kernels are compiled, and what they do to memory."""
