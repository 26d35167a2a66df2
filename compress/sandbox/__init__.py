"""Runs generated code in isolation. Uses the standard library only: the child process has nothing else."""
