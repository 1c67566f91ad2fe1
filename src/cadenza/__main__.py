"""`python -m cadenza` is the `cadenza` program."""

from cadenza.apps.cli.main import main

if __name__ == "__main__":
    main()
