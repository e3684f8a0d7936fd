"""Captions of changes against five references each: BLEU-1..4, METEOR, ROUGE-L and CIDEr-D of pycocoevalcap, and the floors beside them.

    found = report(written, references, changed)                # {"overall": {...}, "change only": {...}, "flag": {...}} of metrics
    for name, sentences in floors(references, changed, training).items(): ...

On LEVIR-CC's own test captions a perfect flag and one fixed sentence reach S*m 73.86 (reference: 0.5983 BLEU-4, 1.2662 CIDEr-D), so a
score over all pairs says mostly whether the change was noticed: "change only" stands beside it, and both floors are computed anew on the
data at hand. Words are scored, lower case, without full stops and commas; published rows differ in their tokens, so no two decimals are
compared. METEOR needs Java; without it there is no METEOR and no S*m, and nothing stands in for them. CIDEr-D weighs words by how rare they
are among the references of all pairs that are scored: on pairs that all have the same references it is 0 by construction.
"""

import functools
import re
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np

from repro.data.levir import NO_CHANGE
from repro.intervals import bootstrap, wilson
from repro.machine import UserError
from repro.models.change_agent_config import NO_CHANGE as FIXED

DRAWS = 1000  # of the bootstrap of BLEU, which is no mean over pairs
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "S*m")


def clean(sentence: str) -> str:
    """Lower case, words apart by one space, no full stops and commas."""
    return " ".join(re.sub(r"[.,]", " ", sentence.lower()).split())


def lacks_meteor() -> str:
    """Why METEOR cannot be computed here, "" where it can."""
    return "" if shutil.which("java") else "no java"


def report(written: Sequence[str], references: Sequence[Sequence[str]], changed: np.ndarray, meteor: bool | None = None, seed: int = 0
           ) -> dict[str, dict[str, dict]]:
    """Metrics (value, n, low, high) of one sentence a pair: "overall", "change only", and "flag": does it say whether something changed.

    meteor: False leaves METEOR and S*m out; None computes them where there is Java.
    """
    changed = np.asarray(changed, bool)
    if not len(written) == len(references) == len(changed) or not len(written):
        raise UserError("captions and pairs do not go together", "as many of each, at least one",
                        f"{len(written)} captions, {len(references)} lists of references, {len(changed)} flags")
    use = not lacks_meteor() if meteor is None else meteor
    found = {"overall": scores(written, references, use, seed), "flag": flag(written, changed)}
    if changed.any():
        only = np.flatnonzero(changed)
        found["change only"] = scores([written[i] for i in only], [references[i] for i in only], use, seed)
    return found


def flag(written: Sequence[str], changed: np.ndarray) -> dict[str, dict]:
    """Share of pairs whose sentence is a no-change sentence exactly where nothing changed, over all, and over changed pairs."""
    says = np.array([clean(one) not in NO_CHANGE for one in written])
    groups = {"accuracy": np.ones(len(says), bool), "of changed pairs": changed, "of unchanged pairs": ~changed}
    return {name: _rate((says == changed)[rows]) for name, rows in groups.items() if rows.any()}


def scores(written: Sequence[str], references: Sequence[Sequence[str]], meteor: bool, seed: int = 0) -> dict[str, dict]:
    """The metrics of METRICS, as shares (CIDEr-D: to 10), with 95 % intervals; CIDEr-D is left out where all references are the same."""
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise UserError("captions are scored with pycocoevalcap, which is not installed", found=error,
                        next_step="pip install pycocoevalcap==1.2") from error
    said = {i: [clean(one)] for i, one in enumerate(written)}
    truth = {i: [clean(one) for one in some] for i, some in enumerate(references)}
    bleu = BleuScorer(n=4)
    for i in said:
        bleu += (said[i][0], truth[i])
    found = dict(zip(METRICS, _bleu(bleu, len(said), seed), strict=False))
    if meteor:
        found["METEOR"] = _mean(*_meteor(truth, said), seed)
    found["ROUGE-L"] = _mean(*Rouge().compute_score(truth, said), seed)
    if len({tuple(sorted(some)) for some in truth.values()}) > 1:
        found["CIDEr-D"] = _mean(*Cider().compute_score(truth, said), seed)
    parts = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
    if all(name in found for name in parts):
        mean = {key: float(np.mean([found[name][key] for name in parts])) for key in ("value", "low", "high")}
        found["S*m"] = {**mean, "n": len(said)}  # of the bounds: no narrower than an interval of the mean
    return found


def _bleu(scorer, n: int, seed: int) -> list[dict]:
    """BLEU-1..4 of the corpus from the package's own counts of each sentence, with the reference length nearest to the sentence's."""
    rows = np.array([[test["testlen"], min((abs(length - test["testlen"]), length) for length in test["reflen"])[1], *test["guess"],
                      *test["correct"]] for test in scorer.ctest], np.float64)  # fmt: skip
    value = _corpus(rows.sum(0)[None])[0]
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
    low, high = np.percentile(_corpus(draws @ rows), [2.5, 97.5], axis=0)
    return [{"value": float(v), "n": n, "low": float(min(a, v)), "high": float(max(b, v))}
            for v, a, b in zip(value, low, high, strict=True)]


def _corpus(sums: np.ndarray) -> np.ndarray:
    """(k, 4) BLEU-1..4 of sums (k, 2 + 4 + 4): lengths, n-grams, n-grams that match; the package's tiny and small included."""
    tiny, small = 1e-15, 1e-9
    share = (sums[:, 6:] + tiny) / (sums[:, 2:6] + small)
    bleu = np.cumprod(share, axis=1) ** (1 / np.arange(1, 5))
    ratio = (sums[:, :1] + tiny) / (sums[:, 1:2] + small)
    return np.where(ratio < 1, bleu * np.exp(1 - 1 / ratio), bleu)


@functools.cache
def _program():
    """METEOR's Java program, which reads its tables for seconds before it answers; one for all tables of a process."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _meteor(truth: dict, said: dict) -> tuple[float, list[float]]:
    try:
        return _program().compute_score(truth, said)
    except (OSError, ValueError) as error:
        _program.cache_clear()  # it may be dead
        raise UserError("METEOR's Java program gave no score", "java that runs meteor-1.5.jar", error,
                        "repair Java, or leave METEOR out (meteor=False)") from error


def _mean(value: float, each: Sequence[float], seed: int) -> dict:
    """A corpus value, with how far a bootstrap of the sentences' mean goes to either side: METEOR's value is no mean of its sentences."""
    each, value = np.asarray(each, float), float(value)
    low, high = (bound - float(each.mean()) for bound in bootstrap(each, seed=seed))
    return {"value": value, "n": len(each), "low": value + min(low, 0.0), "high": value + max(high, 0.0)}


def _rate(right: np.ndarray) -> dict:
    low, high = wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()), "n": len(right), "low": low, "high": high}


# ---- floors ------------------------------------------------------------------------------------------------------------------------


def commonest(training: Sequence[Sequence[str]]) -> str:
    """The change sentence that stands most often in training captions; of equally frequent ones the first by alphabet."""
    counts = Counter(clean(one) for some in training for one in some if clean(one) not in NO_CHANGE)
    if not counts:
        raise UserError("the training captions hold no change", "at least one changed pair", f"{len(training)} unchanged ones")
    return min(counts, key=lambda sentence: (-counts[sentence], sentence))


def floors(changed: np.ndarray, training: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """{name: a sentence for each pair}: what can be had without looking, or with nothing but the flag."""
    fixed = commonest(training)
    return {f'always "{FIXED}"': [FIXED] * len(changed),
            f'perfect flag, and "{fixed}"': [fixed if one else FIXED for one in changed]}
