"""Generation of training text: the teacher answers prompts."""
