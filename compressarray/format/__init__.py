"""The grammar of what is stored; and what leaves the process, in files and messages."""
