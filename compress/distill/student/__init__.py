"""The student before training: its first weights, its size, and the memory that training needs."""
