"""Leakage: how often what was to be forgotten comes out when a model is asked again and again."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dipo_pl.errors import check_count, check_share
from dipo_pl.metrics.inputs import Numbers, as_sample, check_texts, reject
from dipo_pl.metrics.rouge import rouge_l_recall
from dipo_pl.metrics.words import is_unspaced


def leaked(texts: Sequence[str], answer: str, entity: str | None = None, recall: float = 0.8) -> Tensor:
    r"""Return [ROUGE-L recall of the answer in the text >= recall, or the entity stands in the text] of each text.

    An entity stands in a text if its words do, in any case and with any spaces between them; in a script without spaces
    wherever its characters do.

    Source: leak@k, arXiv:2511.04934, with these two measures in place of an entailment model.

    Args:
        texts: n sampled answers to one question, without prompt and special tokens.
        answer: the true answer.
        entity: the part of the answer that is the secret; None takes the recall alone.
        recall: threshold, in (0, 1].

    Returns:
        [n] bool.

    Raises:
        ValueError: `texts` is no list of strings, or the entity is empty.
        InputError: the threshold is no share.
    """
    check_share("recall", recall)
    check_texts("texts", texts)
    found = rouge_l_recall(texts, [answer] * len(texts)) >= recall
    if entity is None:
        return found
    words = entity.split()
    if not words:
        raise ValueError(
            f"entity must have a word (got {entity!r}): leave it out where the whole answer counts"
        )
    pattern = r"\s+".join(map(re.escape, words))
    before = "" if is_unspaced(words[0][0]) else r"(?<!\w)"
    after = "" if is_unspaced(words[-1][-1]) else r"(?!\w)"
    stands = re.compile(f"{before}{pattern}{after}", re.IGNORECASE)
    return found | torch.tensor([stands.search(text) is not None for text in texts], dtype=torch.bool)


def leak_at_k(leaks: Numbers, samples: int, k: int) -> Tensor:
    r"""Return 1 - C(n - c, k) / C(n, k), the chance that at least one of k samples of a row leaks.

    Of n samples c leak; the value is the mean over all choices of k of them, exact up to the last rounding.

    Source: leak@k, arXiv:2511.04934, with the unbiased estimator of pass@k, arXiv:2107.03374.

    Args:
        leaks: [N] c of each row.
        samples: n.
        k: at least 1, at most n.

    Returns:
        [N] float64 on the CPU, in [0, 1].

    Raises:
        ValueError: `leaks` is not [N], has no rows, or a value is no whole number from 0 to n.
        InputError: k is below 1 or above n.
    """
    check_count("k", k)
    check_count(f"samples, for leak@{k},", samples, k)
    counts = as_sample("leaks", leaks)
    advice = "count the samples of the row that leak"
    reject(
        "leaks",
        counts,
        lambda each: (each < 0) | (each > samples) | (each != each.round()),
        f"whole numbers from 0 to {samples}",
        advice,
    )
    ways = math.comb(samples, k)
    values = [(ways - math.comb(samples - int(count), k)) / ways for count in counts]
    return torch.tensor(values, dtype=torch.float64)


def upper_bound(values: Numbers, confidence: float = 0.95) -> float:
    r"""Return the one-sided upper bound of Clopper and Pearson for the mean of values of rows.

        the largest p with P(Binomial(N, p) <= x) >= 1 - confidence,   x = the sum of the values, rounded up

    For values of 0 and 1 it is exact. A row's chance between them varies less than a row that leaks or does not, and x is
    rounded up, so that the bound is then too high rather than too low. With x = 0 it is 1 - (1 - confidence)^(1/N).

    Source: Clopper and Pearson, Biometrika 26, 1934.

    Args:
        values: [N] in [0, 1], such as those of `leak_at_k`.
        confidence: in (0, 1).

    Returns:
        The bound, in (0, 1].

    Raises:
        ValueError: `values` is not [N], has no rows, or a value is outside of [0, 1].
        InputError: the confidence is no share.
    """
    # Half a second, which commands that compute nothing need not wait.
    from scipy.stats import binomtest

    check_share("confidence", confidence, one=False)
    found = as_sample("values", values)
    reject("values", found, lambda each: (each < 0) | (each > 1), "in [0, 1]", "pass the result of leak_at_k")
    # A sum of many roundings is not to count as one row more.
    count = math.ceil(float(found.sum()) - 1e-9)
    test = binomtest(count, len(found), alternative="less")
    return float(test.proportion_ci(confidence_level=confidence, method="exact").high)
