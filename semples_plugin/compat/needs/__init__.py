"""What a run of each host needs beside its code, as data, and the check of a checkout against it."""
