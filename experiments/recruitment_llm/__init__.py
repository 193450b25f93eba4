"""Study: blocks of a pretrained LLM recruited from real text, beside K-means, random blocks and nulls."""
