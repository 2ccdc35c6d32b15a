"""The start of a registration: an affine from centres, moments, or a rigid or affine search of its own."""
