"""What leaves the process: trees of numbers, strings and arrays, in files and messages."""
