"""From what was said of a sample to what becomes of it: pure functions of plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diptych.recipes.bootstrap import Bootstrap

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The texts that stay with an image, and a row for each pair that it came in: kept, re-captioned, dropped, or skipped."""

    texts: list[str]
    pairs: list[Row]


def judged(text: Row, asked: Bootstrap) -> tuple[bool, str]:
    """Whether a text stays, and why: its scores must be over their thresholds (BLIP, section 3.3: it is dropped where the
    matching head calls it unmatched)."""
    if "bad" in text:
        return False, text["bad"]
    if not text.keys() & {"match", "cosine"}:
        return True, "not judged"
    reasons = []
    for name, over in (("match", asked.match_over), ("cosine", asked.cosine_over)):
        if name in text and not text[name] > over:
            return False, f"{name} {text[name]:g} is not over {over:g}"
        if name in text and (name == "match" or over > -1):
            reasons.append(f"{name} {text[name]:g} is over {over:g}")
    return True, ", ".join(reasons)


def decide(row: Row, asked: Bootstrap, alike: Row | None = None) -> Verdict:
    """`row`: an image of the first pass. `alike`: the image that it repeats, where that is a reason to drop it."""
    told = {name: row[name] for name in ("key", "index", "where")}
    if "bad" in row:
        return Verdict([], [told | {"decision": "skipped", "reason": row["bad"]}])
    if alike is not None:
        reason = f"the image is like {alike['of']} (cosine {alike['cosine']:g})"
        pairs = [
            told | {"caption": i, **text, "decision": "dropped", "reason": reason}
            for i, text in enumerate(row["texts"])
        ]
        return Verdict([], pairs)
    synthetic: Row | None = row["synthetic"]
    fits = synthetic is not None and judged(synthetic, asked)[0]
    texts, pairs = [], []
    for place, text in enumerate(row["texts"]):
        stays, reason = judged(text, asked)
        decision = "kept" if stays else "re-captioned" if fits else "dropped"
        pairs.append(told | {"caption": place, **text, "decision": decision, "reason": reason})
        if stays:
            texts.append(text["text"])
    added = fits and (asked.synthetic == "beside" or len(texts) < len(pairs))
    if synthetic is not None:
        pairs = [pair | {"synthetic": synthetic} for pair in pairs]
        if added and synthetic["text"] not in texts:
            texts.append(synthetic["text"])
    return Verdict(texts, pairs)
