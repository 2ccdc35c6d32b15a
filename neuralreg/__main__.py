"""`python -m neuralreg` is the `neuralreg` command."""

from neuralreg.cli import main

main()
