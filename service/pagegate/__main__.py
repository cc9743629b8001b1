"""`python -m pagegate` is the `pagegate` command."""

from pagegate.cli import main

if __name__ == "__main__":
    main()
