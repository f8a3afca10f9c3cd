"""`python -m anthesis.cli`."""

from anthesis.cli import main

main()
