"""The validator: every rule of vLLM's loader and of this project's formats, one file per kind of rule."""
