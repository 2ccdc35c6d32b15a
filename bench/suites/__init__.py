"""The suites of ``neuralreg bench``: a module each, with ``HONOURS``, the options that it heeds, and ``plan``."""

SUITES = {
    "kernels": "Every op beside other formulations: error, time, memory, floor.",
    "iteration": "One optimiser step of every method, part by part, beside plain torch.",
    "memory-scaling": "Peak memory and time of an iteration over cube sizes and points.",
    "registration": "Dice or TRE over CPU seconds on a real pair, beside other tools.",
    "training": "Dice on unseen pairs over CPU seconds of training.",
}
