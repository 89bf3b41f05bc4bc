"""The tests, in folders that mirror the package: cells, layers, backends, what torch does with them, and tools."""
