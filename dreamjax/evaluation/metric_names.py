"""Metrics in words, with their units, for people."""

PERCENT = "%"
_NAMES = {
    "answerable_accuracy": "accuracy, answerable questions",
    "unanswerable_accuracy": "accuracy, unanswerable questions",
    "open_accuracy": "accuracy, open questions",
    "binary_accuracy": "accuracy, yes-or-no and either-or questions",
    "image_accuracy": "accuracy, questions with an image",
    "text_accuracy": "accuracy, questions without an image",
    "circular_accuracy": "accuracy, right in every order of the choices",
    "plain_accuracy": "accuracy, first order of the choices",
    "mean_f1": "F1, mean of the categories",
    "subject_mean": "accuracy, mean of the subjects",
    "chance": "accuracy by chance",
    "std": "standard deviation of the total over runs",
    "CP": "coarse perception",
    "FP-S": "fine-grained perception, single instance",
    "FP-C": "fine-grained perception, across instances",
    "AR": "attribute reasoning",
    "LR": "logic reasoning",
    "RR": "relation reasoning",
    "rec": "recognition",
    "ocr": "text recognition",
    "know": "knowledge",
    "gen": "generation",
    "spat": "spatial awareness",
    "math": "mathematics",
    "ROUGE_L": "ROUGE-L",
    "fid": "FID (Fréchet distance of Inception features)",
    "frechet": "Fréchet distance of features",
    "kid_x1000": "KID (kernel distance)",
    "clip_score": "CLIP score (mean cosine of image and text)",
    "clip_agreement": "CLIP score (mean cosine of image and text)",
    "support": "judgements in support, generated documents",
    "real_support": "judgements in support, real documents",
    "agreement": "agreement of judges (Fleiss' kappa)",
}
_UNITS = {
    "fid": "",
    "frechet": "",
    "kid_x1000": "x 1000",
    "clip_score": "x 100",
    "clip_agreement": "x 100",
    "agreement": "",
    "images_per_document": "",
}
_OUT_OF = {"perception": "of 2,000", "cognition": "of 800", "total": "of 2,800"}  # of MME; its categories are of 200


def name_of(metric: str) -> str:
    """A metric's name in words: of random_f1 "random: F1"."""
    if metric in _NAMES:
        return _NAMES[metric]
    for ending, words in (("_plain", "plain tokens"), ("_f1", "F1"), ("_yes_ratio", "answers of yes")):
        if metric.endswith(ending):
            return f"{name_of(metric.removesuffix(ending))}: {words}"
    if metric.startswith("real_"):
        return f"{name_of(metric.removeprefix('real_'))}, real documents"
    if metric.startswith("Bleu_"):
        return f"BLEU-{metric.removeprefix('Bleu_')}"
    group, slash, member = metric.partition("/")
    return f"{group}: {member}" if slash else metric.replace("_", " ")


def unit_of(task: str, metric: str) -> str:
    """The unit of a task's metric, a percentage unless another one is known."""
    if task == "mme" and metric != "accuracy":
        return _OUT_OF.get(metric, "of 200")
    if task == "storybook":
        return ""
    if metric.startswith(("CIDEr", "Bleu", "ROUGE", "METEOR")):
        return "x 100"
    return _UNITS.get(metric.removeprefix("real_"), PERCENT)
