"""What is saved to a file comes back bit for bit, and what is damaged is refused."""

from __future__ import annotations

CODECS = ["raw", "sparse", "delta", "delta-huffman", "zlib"]
