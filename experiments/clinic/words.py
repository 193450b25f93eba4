"""The words of the clinic's notes, by kind."""

from __future__ import annotations


def _list(text: str) -> list[str]:
    return text.replace("\n", "").split("|")


COMPLAINTS = _list("""
cough|fever|headache|dizziness|nausea|vomiting|fatigue|rash|palpitations|dyspnea|wheezing|diarrhea|
constipation|heartburn|sore throat|back pain|chest pain|abdominal pain|joint pain|knee pain|insomnia|
weight loss|night sweats|itching|blurred vision|hoarseness|numbness|weakness|tremor|swelling|earache|
dysuria|polyuria|bruising|hair loss|muscle cramps|loss of appetite|runny nose|neck stiffness|confusion
""")
DIAGNOSES = _list("""
pneumonia|influenza|migraine|anemia|asthma|bronchitis|gastritis|hypertension|diabetes|hypothyroidism|
gout|sinusitis|pharyngitis|appendicitis|cholecystitis|pancreatitis|cystitis|depression|arthritis|eczema|
psoriasis|angina|arrhythmia|heart failure|stroke|epilepsy|sciatica|osteoporosis|hepatitis|colitis|
otitis|vertigo|cellulitis|dehydration|allergy|neuropathy|anxiety|bursitis|tonsillitis|pyelonephritis
""")
PLANS = _list("""
rest and fluids|blood tests|follow up in clinic|referral to a specialist|watchful waiting|physiotherapy|
dietary advice|urgent admission|smoking cessation|vaccination|wound care|home monitoring
""")
HABITS = _list("smoker|non smoker|former smoker|drinks alcohol|no alcohol|lives alone|works nights|retired")
MODALITIES = _list("radiograph|ct|mri|ultrasound|mammogram|fluoroscopy|scintigraphy|angiogram")
ANATOMY = _list("""
lung|liver|kidney|spleen|pancreas|brain|spine|hip|knee|shoulder|wrist|ankle|thyroid|breast|bladder|
prostate|uterus|ovary|aorta|heart|mediastinum|pleura|colon|stomach|esophagus|gallbladder|bile duct|
adrenal gland|orbit|sinus|pelvis|femur|tibia|humerus|clavicle|rib|sternum|carotid artery|lymph node|
diaphragm
""")
FINDINGS = _list("""
nodule|mass|effusion|fracture|consolidation|opacity|calcification|cyst|stenosis|dilatation|edema|
hemorrhage|infarct|abscess|atrophy|thickening|lesion|fluid collection|stone|thrombus|aneurysm|erosion|
dislocation|enlargement|lucency|sclerosis|cavity|air trapping|herniation|hematoma
""")
MARGINS = _list("smooth|lobulated|spiculated|irregular|ill defined|well circumscribed")
SIGNALS = _list("hyperdense|hypodense|hyperintense|hypointense|echogenic|anechoic|enhancing|non enhancing")
CATEGORIES = _list("benign|probably benign|indeterminate|suspicious|malignant|degenerative|traumatic")
SUFFIXES = _list("""
pril|sartan|olol|dipine|statin|gliptin|formin|oxacin|cillin|mycin|azole|vir|prazole|setron|triptan|
zepam|pramine|oxetine|coxib|parin
""")
PREFIXES = _list("ba|ce|di|fo|ga|he|ji|ka|lo|mu|ne|po|ra|so|ta|ve|xi|zo|ami|eto|ori|ulu")
MECHANISMS = _list("inhibits|blocks|activates|stabilises|antagonises|depletes")
TARGETS = _list("""
the angiotensin receptor|the beta receptor|calcium channels|reductase|peptidase|gyrase|wall synthesis|
the ribosome|demethylase|polymerase|the proton pump|serotonin uptake|the histamine receptor|thrombin|
cyclooxygenase|sodium channels|the dopamine receptor|chloride channels|kinase|the insulin receptor
""")
EFFECTS = _list("""
hypotension|bradycardia|flushing|myalgia|hypoglycemia|tendinitis|hives|ototoxicity|jaundice|leukopenia|
sedation|dry mouth|hyperkalemia|bleeding|ulcer|seizure|tachycardia|weight gain|taste change|
photosensitivity
""")
ROUTES = _list("orally|intravenously|subcutaneously|topically|by inhalation")
INTERVALS = _list("once daily|twice daily|every eight hours|at bedtime|weekly")
ADVICE = _list("""
monitor levels|reduce the dose|avoid the combination|separate the doses|check renal function|
stop before surgery
""")
