"""What stands on Ray: `make test-hosts-ray`."""
