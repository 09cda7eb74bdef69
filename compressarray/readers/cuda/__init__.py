"""A store's replica in the memory of a GPU, decoded where it is used."""
