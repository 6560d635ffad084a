"""What every room uses: checks, files, processes."""
