"""`python -m repro COMMAND` is the `repro` command of this very interpreter."""

from repro.cli import main

if __name__ == "__main__":
    main()
