"""``python -m vlmbatch``."""

from vlmbatch.cli.main import main

if __name__ == "__main__":
    main()
