"""`python -m openhqm` is the `openhqm` command."""

from openhqm.cli import main

if __name__ == "__main__":
    main()
