"""Does attention point to the facts that an answer rests on, and can a rule make it?"""
