"""`python -m cacheservice` is the command `cacheservice`."""

from cacheservice.cli.main import main

main()
