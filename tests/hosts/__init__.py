"""Tests in environments of their own, where large hosts are installed: `make test-hosts`.

Where a host is not there, they fail.
"""
