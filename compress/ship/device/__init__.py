"""Programs that a bundle carries to the device. They import the standard library only, and run in Python 3.8."""
