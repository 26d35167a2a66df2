"""The teacher's targets on disk: codecs, capture, the cache, and a teacher that reads from it."""
