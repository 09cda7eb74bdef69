"""Readers of a store elsewhere than where it is written."""
