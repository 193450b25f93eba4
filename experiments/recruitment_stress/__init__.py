"""Adversarial streams: does recruitment stay calm, within its capacity, and explain itself?"""
