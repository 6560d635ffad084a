"""The commits of the host code bases that patches and corrections fit; imported in no time."""

COMMITS = {
    "clims": "f9546d32ad9b4545577eebdc9e4d879aff3366d7",
    "weaktr": "3457ad3d052a2f65320671cd9fc801b5c9dcb5c6",
    "fma-wsss": "112437ec2026cf93a79690d2a2b8b0541407178b",
}
