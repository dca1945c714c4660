"""The models of a meta-evaluation, and the metrics that are compared on them."""

from typing import NamedTuple

# Passes over the data, from one that leaves little in the weights to one that leaves nearly all.
EPOCHS = (3, 4, 6, 8, 12)


class Case(NamedTuple):
    """A model: trained on all rows, on the retain rows alone, or on wrong answers to the forget questions."""

    kind: str
    epochs: int
    seed: int

    @property
    def knows(self) -> bool:
        """True if it was trained on the forget rows."""
        return self.kind == "all rows"

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.kind.replace(' ', '-')}-{self.seed}"

    @property
    def words(self) -> list[str]:
        """Options of its training beside the demo's."""
        own = {
            "all rows": [],
            "retain rows": ["--config", "retain_only.yaml"],
            "wrong answers": ["--data", "wrong_answers.WrongAnswers"],
        }[self.kind]
        schedule = {"trainer.max_epochs": self.epochs, "trainer.check_val_every_n_epoch": self.epochs}
        return [*own, *(word for key, value in schedule.items() for word in (f"--{key}", str(value)))]


def cases(count: int) -> list[Case]:
    """Return `count` models that know and as many that do not, in turn; half of the latter learned wrong answers."""
    found = []
    for place in range(count):
        epochs = EPOCHS[place % len(EPOCHS)]
        found.append(Case("all rows", epochs, 1000 + place))
        found.append(Case(("retain rows", "wrong answers")[place % 2], epochs, 2000 + place))
    return found


class Metric(NamedTuple):
    """A metric that is higher the more a model knows, with the published values.

    Attributes:
        key: in the metrics of an audit; with a minus, 1 minus that metric.
        published: faithfulness, and robustness to relearning and to quantization; None where there is none.
    """

    title: str
    key: str
    published: tuple[float, float, float] | None = None


# Llama-3.2-1B, TOFU forget10, 30 + 30 models: results page of arXiv:2605.24614 (docs/data/meta_eval.json of its repository).
METRICS = (
    Metric("extraction strength", "forget_extraction_strength", (0.891, 0.662, 0.974)),
    Metric("exact memorization", "forget_exact_memorization", (0.817, 0.449, 0.983)),
    Metric("probability", "forget_probability", (0.816, 0.494, 0.873)),
    Metric("probability, answer in other words", "paraphrased_probability", (0.707, 0.849, 0.765)),
    Metric("truth ratio", "truth_ratio_knowledge", (0.947, 0.134, 0.992)),
    Metric("ROUGE-L recall", "forget_rouge_l_recall", (0.722, 0.122, 0.912)),
    Metric('ROUGE-L recall after "Sure, ..."', "answer_prefix_0_rouge_l_recall", (0.757, 0.127, 0.986)),
    Metric("ROUGE-L recall after 2 tokens", "answer_prefix_2_rouge_l_recall"),
    Metric("membership, loss", "membership_loss_auc", (0.902, 0.355, 0.885)),
    Metric("membership, zlib", "membership_zlib_auc", (0.867, 0.326, 0.888)),
    Metric("membership, Min-K%", "membership_min_k_auc", (0.907, 0.367, 0.865)),
    Metric("membership, Min-K%++", "membership_min_k_plus_plus_auc", (0.816, 0.278, 0.804)),
    Metric("logit lens", "logit_lens"),
    Metric("1 - Unlearning Depth Score", "-unlearning_depth", (0.971, 0.957, 0.975)),
)
