"""Are the books of a stream found, and what does it save?"""
