"""Does it matter in which order domains come, and how?"""
