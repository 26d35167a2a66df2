"""Code that a model wrote, run where it can do no harm. Everything here is standard library: the child has no other."""
