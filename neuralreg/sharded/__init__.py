"""One pair over several processes: each holds a slab of the images and a copy of the field."""
