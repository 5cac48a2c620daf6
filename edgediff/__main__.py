"""`python -m edgediff`."""

from edgediff.cli import main

main()
