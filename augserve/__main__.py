"""`python -m augserve` is the command `augserve`."""

from augserve.cli import main

main()
