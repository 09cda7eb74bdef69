"""On Ray: other machines, and other libraries that stand on it.

`compressarray.ray.rllib` has replay buffers for RLlib.
"""
