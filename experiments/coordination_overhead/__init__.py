"""What does it cost to have many LLMs?"""
