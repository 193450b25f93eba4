"""A clinic's notes as a stream: one small LLM becomes three; two minutes on a CPU core.

    python -m experiments.clinic --notes runs/notes.jsonl
    localist train experiments/configs/clinic.py --workdir runs/ward

Any other corpus can take the place of the notes: `--config.data.corpus=my_texts/`. Its documents come in its own order;
`--config.data.shuffle=True` mixes them. `--config.hierarchy.base=runs/quickstart` begins with the LLM of that run.
"""

from ml_collections import ConfigDict

from experiments.clinic.setting import settings
from localist_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.default()
    c.update(settings(seed=0).to_dict())
    c.data.corpus = "runs/notes.jsonl"
    c.data.shuffle = False
    c.data.valid_rows = 0
    c.train.save_every = 100
    c.train.log_every = 4
    return c
