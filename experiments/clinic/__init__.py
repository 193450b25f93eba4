"""Does one LLM become a clinic's three, unaided, when the stream pays for them?"""
