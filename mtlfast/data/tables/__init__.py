"""Large published tables: their formats, and the cache that batches are read from."""
