"""Does a mean over more draws lie nearer to the truth? The smallest complete study: copy it to begin one.

python tests/experiments/smallest_study.py --workdir runs/smallest --out runs/smallest
"""

import numpy as np

from experiments.cases import Case, Results, Store
from experiments.study import Options, Page, Study
from experiments.workers import Pool
from localist_jax.report.study import spread, table


def measure(store: Store, case: Case) -> dict[str, float]:
    """Return by how much the mean of some draws misses the truth, which is 0.5."""
    draws = np.random.default_rng(case.settings["seed"]).random(case.settings["draws"])
    return {"error": abs(float(draws.mean()) - 0.5)}


def cases(options: Options) -> list[Case]:
    """Return a case for every number of draws and seed."""
    settings = [{"draws": draws, "seed": seed} for draws in options.draws for seed in options.seeds]
    return [Case(f"mean/{s['draws']}/seed{s['seed']}", s, measure, cost=s["draws"]) for s in settings]


def page(options: Options, results: Results) -> Page:
    """Return the page: the errors of all seeds, by number of draws."""
    errors = {n: [results[f"mean/{n}/seed{s}"]["error"] for s in options.seeds] for n in options.draws}
    body = table(["draws", "error"], [[str(draws), spread(values)] for draws, values in errors.items()])
    return Page("Means of many draws", body, options.seeds, figures={"errors": errors})


DRAWS = {"nargs": "+", "type": int, "default": [10, 1000], "help": "of each mean"}
STUDY = Study(
    "smallest_study", __doc__, cases, page, {"--draws": DRAWS}, seeds=(0, 1), quick={"draws": [10]},
    pool=lambda options: Pool(options.workers),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
