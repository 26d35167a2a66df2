"""The teacher's targets on disk: codecs, capture, the cache and the teacher that reads it."""
