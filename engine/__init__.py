"""A run that is not lost: its flags, folder, loop, data, devices and processes."""
