"""Generated from proto/cacheservice/v1 by `make proto`; never edited."""
