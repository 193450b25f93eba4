"""A generated clinical world with known domains, known concepts and known facts.

Three kinds of notes: general medicine, radiology, pharmacology. Each seed draws the facts anew: which complaint speaks
for which diagnosis, where which finding is seen and by which modality, which drug belongs to which class, what it does
and with what it interacts. The words of one kind partly recur in the others, in other company. Every word is labelled
with its concept kind, so that what a model has found can be compared with what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DOMAINS = ("general", "radiology", "pharmacology")

COMPLAINTS = """cough|fever|headache|dizziness|nausea|vomiting|fatigue|rash|palpitations|dyspnea|wheezing|diarrhea|
constipation|heartburn|sore throat|back pain|chest pain|abdominal pain|joint pain|knee pain|insomnia|weight loss|
night sweats|itching|blurred vision|hoarseness|numbness|weakness|tremor|swelling|earache|dysuria|polyuria|bruising|
hair loss|muscle cramps|loss of appetite|runny nose|neck stiffness|confusion""".replace("\n", "").split("|")
DIAGNOSES = """pneumonia|influenza|migraine|anemia|asthma|bronchitis|gastritis|hypertension|diabetes|hypothyroidism|
gout|sinusitis|pharyngitis|appendicitis|cholecystitis|pancreatitis|cystitis|depression|arthritis|eczema|psoriasis|
angina|arrhythmia|heart failure|stroke|epilepsy|sciatica|osteoporosis|hepatitis|colitis|otitis|vertigo|cellulitis|
dehydration|allergy|neuropathy|anxiety|bursitis|tonsillitis|pyelonephritis""".replace("\n", "").split("|")
PLANS = """rest and fluids|blood tests|follow up in clinic|referral to a specialist|watchful waiting|physiotherapy|
dietary advice|urgent admission|smoking cessation|vaccination|wound care|home monitoring""".replace(
    "\n", ""
).split("|")
HABITS = "smoker|non smoker|former smoker|drinks alcohol|no alcohol|lives alone|works nights|retired".split(
    "|"
)
MODALITIES = "radiograph|ct|mri|ultrasound|mammogram|fluoroscopy|scintigraphy|angiogram".split("|")
ANATOMY = """lung|liver|kidney|spleen|pancreas|brain|spine|hip|knee|shoulder|wrist|ankle|thyroid|breast|bladder|
prostate|uterus|ovary|aorta|heart|mediastinum|pleura|colon|stomach|esophagus|gallbladder|bile duct|adrenal gland|
orbit|sinus|pelvis|femur|tibia|humerus|clavicle|rib|sternum|carotid artery|lymph node|diaphragm""".replace("\n", "").split("|")  # fmt: skip
FINDINGS = """nodule|mass|effusion|fracture|consolidation|opacity|calcification|cyst|stenosis|dilatation|edema|
hemorrhage|infarct|abscess|atrophy|thickening|lesion|fluid collection|stone|thrombus|aneurysm|erosion|dislocation|
enlargement|lucency|sclerosis|cavity|air trapping|herniation|hematoma""".replace("\n", "").split("|")
MARGINS = "smooth|lobulated|spiculated|irregular|ill defined|well circumscribed".split("|")
SIGNALS = "hyperdense|hypodense|hyperintense|hypointense|echogenic|anechoic|enhancing|non enhancing".split(
    "|"
)
CATEGORIES = "benign|probably benign|indeterminate|suspicious|malignant|degenerative|traumatic".split("|")
SUFFIXES = """pril|sartan|olol|dipine|statin|gliptin|formin|oxacin|cillin|mycin|azole|vir|prazole|setron|triptan|
zepam|pramine|oxetine|coxib|parin""".replace("\n", "").split("|")
PREFIXES = "ba|ce|di|fo|ga|he|ji|ka|lo|mu|ne|po|ra|so|ta|ve|xi|zo|ami|eto|ori|ulu".split("|")
MECHANISMS = """inhibits|blocks|activates|stabilises|antagonises|depletes""".split("|")
TARGETS = """the angiotensin receptor|the beta receptor|calcium channels|reductase|peptidase|gyrase|wall synthesis|
the ribosome|demethylase|polymerase|the proton pump|serotonin uptake|the histamine receptor|thrombin|cyclooxygenase|
sodium channels|the dopamine receptor|chloride channels|kinase|the insulin receptor""".replace(
    "\n", ""
).split("|")
EFFECTS = """hypotension|bradycardia|flushing|myalgia|hypoglycemia|tendinitis|hives|ototoxicity|jaundice|leukopenia|
sedation|dry mouth|hyperkalemia|bleeding|ulcer|seizure|tachycardia|weight gain|taste change|photosensitivity""".replace("\n", "").split("|")  # fmt: skip
ROUTES = "orally|intravenously|subcutaneously|topically|by inhalation".split("|")
INTERVALS = "once daily|twice daily|every eight hours|at bedtime|weekly".split("|")
ADVICE = """monitor levels|reduce the dose|avoid the combination|separate the doses|check renal function|
stop before surgery""".replace("\n", "").split("|")

KINDS = (
    "function", "complaint", "diagnosis", "plan", "habit", "modality", "anatomy", "finding", "margin", "signal",
    "category", "drug", "mechanism", "target", "effect", "route", "interval", "advice", "number",
)  # fmt: skip
Part = tuple[str, str]  # text and its kind


@dataclass(frozen=True)
class Note:
    """A document with its truth: text, and (text, kind) of its parts in order."""

    domain: str
    text: str
    parts: tuple[Part, ...]


class World:
    """The facts of one seed, and notes about them.

    Args:
      seed: of the facts.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 1])
        self._causes = {d: rng.choice(COMPLAINTS, 3, replace=False) for d in DIAGNOSES}
        self._plans = {d: rng.choice(PLANS, 2, replace=False) for d in DIAGNOSES}
        self._habits = {d: rng.choice(HABITS, 3, replace=False) for d in DIAGNOSES}
        self._seen = {a: rng.choice(FINDINGS, 4, replace=False) for a in ANATOMY}
        self._by = {a: rng.choice(MODALITIES, 2, replace=False) for a in ANATOMY}
        self._looks = {f: (rng.choice(MARGINS, 2, replace=False), rng.choice(SIGNALS, 2, replace=False)) for f in FINDINGS}  # fmt: skip
        self._means = {(a, f): rng.choice(CATEGORIES) for a in ANATOMY for f in self._seen[a]}
        stems = rng.permutation([a + b for a in PREFIXES for b in PREFIXES if a != b])
        self.drugs = [str(stem) + SUFFIXES[i % len(SUFFIXES)] for i, stem in enumerate(stems[:80])]
        self._acts = [(rng.choice(MECHANISMS), rng.choice(TARGETS)) for _ in SUFFIXES]
        self._treats = [rng.choice(DIAGNOSES, 3, replace=False) for _ in SUFFIXES]
        self._harms = [rng.choice(EFFECTS, 2, replace=False) for _ in SUFFIXES]
        self._given = [
            (rng.choice(ROUTES), rng.choice(INTERVALS), 5 * rng.integers(1, 20)) for _ in self.drugs
        ]
        self._clashes = [
            {int(j): (rng.choice(EFFECTS), rng.choice(ADVICE)) for j in rng.choice(len(SUFFIXES), 4, replace=False)}
            for _ in SUFFIXES
        ]  # fmt: skip

    @property
    def concepts(self) -> int:
        """How many things the notes speak of."""
        lists = (COMPLAINTS, DIAGNOSES, PLANS, HABITS, MODALITIES, ANATOMY, FINDINGS, MARGINS, SIGNALS, CATEGORIES,
                 MECHANISMS, TARGETS, EFFECTS, ROUTES, INTERVALS, ADVICE, self.drugs)  # fmt: skip
        return sum(map(len, lists))

    def note(self, domain: str, rng: np.random.Generator) -> Note:
        """A note of one domain."""
        parts = getattr(self, f"_{domain}")(rng)
        return Note(domain, " ".join(text for text, _ in parts), tuple(parts))

    def _general(self, rng: np.random.Generator) -> list[Part]:
        diagnosis = _skewed(rng, DIAGNOSES)
        first, second = rng.permutation(self._causes[diagnosis])[:2]
        denied = _other(rng, COMPLAINTS, self._causes[diagnosis])
        return _parts(
            ("a", ""), (str(rng.integers(2, 9) * 10), "number"), ("year old", ""), (rng.choice(["man", "woman"]), ""),
            ("presents with", ""), (first, "complaint"), ("and", ""), (second, "complaint"), ("for", ""),
            (str(rng.integers(2, 9)), "number"), (rng.choice(["days", "weeks"]), ""), (". denies", ""), (denied, "complaint"),
            (". the patient is a", ""), (rng.choice(self._habits[diagnosis]), "habit"), (". assessment :", ""),
            (diagnosis, "diagnosis"), (". plan :", ""), (rng.choice(self._plans[diagnosis]), "plan"), (".", ""),
        )  # fmt: skip

    def _radiology(self, rng: np.random.Generator) -> list[Part]:
        organ = _skewed(rng, ANATOMY)
        finding = rng.choice(self._seen[organ])
        margins, signals = self._looks[finding]
        absent = _other(rng, FINDINGS, self._seen[organ])
        return _parts(
            ("exam :", ""), (rng.choice(self._by[organ]), "modality"), ("of the", ""), (organ, "anatomy"),
            (". technique : standard . findings : there is a", ""), (str(rng.integers(2, 9)), "number"), ("mm", ""),
            (rng.choice(margins), "margin"), (rng.choice(signals), "signal"), (finding, "finding"), ("in the", ""),
            (rng.choice(["left", "right"]), ""), (organ, "anatomy"), (". no", ""), (absent, "finding"),
            ("is seen . impression :", ""), (self._means[organ, finding], "category"), (finding, "finding"), (".", ""),
        )  # fmt: skip

    def _pharmacology(self, rng: np.random.Generator) -> list[Part]:
        drug = int(_skewed(rng, np.arange(len(self.drugs))))
        family = drug % len(SUFFIXES)
        acts, target = self._acts[family]
        route, interval, dose = self._given[drug]
        other_family = rng.choice(list(self._clashes[family]))
        other = rng.choice([d for i, d in enumerate(self.drugs) if i % len(SUFFIXES) == other_family])
        effect, advice = self._clashes[family][int(other_family)]
        return _parts(
            (self.drugs[drug], "drug"), (acts, "mechanism"), (target, "target"), ("and is given", ""), (route, "route"),
            ("at", ""), (str(dose), "number"), ("mg", ""), (interval, "interval"), ("for", ""),
            (rng.choice(self._treats[family]), "diagnosis"), (". it may cause", ""), (rng.choice(self._harms[family]), "effect"),
            (". with", ""), (other, "drug"), ("there is a risk of", ""), (effect, "effect"), (":", ""), (advice, "advice"),
            (".", ""),
        )  # fmt: skip


def stream(
    world: World, phases: Sequence[tuple[int, Sequence[float]]], batch: int, seed: int, session: int = 4
) -> list[list[Note]]:
    """Batches of notes. Notes come in sessions: some batches of one department, then some of another.

    Args:
      world: that they speak of.
      phases: (sessions, shares of the domains in the order of `DOMAINS`) of each phase.
      batch: notes of a batch.
      seed: of the notes.
      session: batches of a session.
    """
    rng = np.random.default_rng([seed, 2])
    batches = []
    for sessions, shares in phases:
        for domain in rng.choice(DOMAINS, sessions, p=np.asarray(shares) / np.sum(shares)):
            batches += [[world.note(domain, rng) for _ in range(batch)] for _ in range(session)]
    return batches


def _parts(*parts: tuple[object, str]) -> list[Part]:
    return [(str(text), kind or "function") for text, kind in parts]


def _skewed(rng: np.random.Generator, things):
    """One of them, the earlier ones more often (Zipf, exponent ½)."""
    weights = np.arange(1, len(things) + 1) ** -0.5
    return things[rng.choice(len(things), p=weights / weights.sum())]


def _other(rng: np.random.Generator, things: Sequence[str], than: Sequence[str]) -> str:
    return str(rng.choice([x for x in things if x not in than]))
