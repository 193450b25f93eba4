"""A model of one block recruits a second one when a new field of knowledge appears; a minute on 2 CPU cores.

    python -m experiments.launch --config=experiments/configs/recruits.py --workdir=runs/recruits

The corpus `fields` is generated: invented words, half of them shared by two fields that use them differently. The study
`experiments.recruitment_recovery` has more fields, seeds and controls. Evidence needs text as it comes, not shuffled.
"""

from ml_collections import ConfigDict

from experiments.recruitment_recovery.runs import settings_of
from localist_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.default()
    c.update(settings_of("recruits", fields=2, seed=0).to_dict())
    c.data.vocab_size = 512
    c.recruitment.placebos = 16
    return c
