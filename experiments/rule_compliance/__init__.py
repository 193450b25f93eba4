"""Do rules hold, what do they cost, and whom do they hurt? On a generated clinic."""
