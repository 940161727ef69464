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
    "image_agreement": "images that show what the text names",
    "image_chance": "the same by chance",
    "unseen_agreement": "images of combinations that training leaves out",
    "placement": "stories with images where they belong",
    "placement_chance": "the same by chance",
    "answer_accuracy": "questions answered right",
    "answer_chance": "the same by chance",
    "answer_swapped": "questions answered right, images swapped",
    "recall_agreement": "images right from an earlier image",
    "recall_chance": "the same by chance",
    "judge_accuracy": "true images that the judge names right",
    "with_images": "documents with images",
    "placed": "documents with each image after text of its own",
    "support": "judgements in support, generated documents",
    "real_support": "judgements in support, real documents",
    "agreement": "agreement of judges (Fleiss' kappa)",
}
_UNITS = {
    "fid": "",
    "frechet": "",
    "kid_x1000": "x 1000",
    "clip_score": "x 100",
    "agreement": "",
    "images_per_document": "",
}
_STORYBOOK = {
    "own": "image loss under the page's own condition",
    "other": "image loss under other stories' conditions",
    "difference": "difference of these losses",
    "standard_errors": "the difference in standard errors over pages",
    "standard_errors_by_story": "the difference in standard errors over stories",
}
_OUT_OF = {"perception": "of 2,000", "cognition": "of 800", "total": "of 2,800"}  # of MME; its categories are of 200


def name_of(metric: str) -> str:
    """A metric's name in words: of random_f1 "random: F1"."""
    if metric in _NAMES:
        return _NAMES[metric]
    for prefix, condition in (("text_", "page's text"), ("context_", "story so far")):
        if metric.removeprefix(prefix) in _STORYBOOK:
            return f"{_STORYBOOK[metric.removeprefix(prefix)]}, {condition}"
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
