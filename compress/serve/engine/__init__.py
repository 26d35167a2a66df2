"""The processes that run the models."""
