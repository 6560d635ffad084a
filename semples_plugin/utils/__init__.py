"""What every room uses: checks, files, ranks and processes."""
