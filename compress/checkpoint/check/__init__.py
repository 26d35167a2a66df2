"""The validator: rules of vLLM's loader and of the supported formats, one file per kind of rule."""
