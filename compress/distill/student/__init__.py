"""The student before any training: which weights it starts with, how large it is, what training it takes."""
