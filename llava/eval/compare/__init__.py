"""Many runs: what to do, the tables of what came out, and the papers' tables beside it."""
