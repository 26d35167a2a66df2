"""A bundle: a folder with a checkpoint and all that a device needs to serve it and to test it. One file per part."""
