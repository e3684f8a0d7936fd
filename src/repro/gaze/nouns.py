"""What an English instruction says, step by step: rules over words, no model.

    read("take the spoon from the tray and put it in the left drawer")[0]
    -> [Step(Thing("spoon", place="from", references=("tray",)), "into", Thing("drawer", side="left"))]

A sentence is rewritten (the many ways to say one place become one token), cut into tokens, and walked once from left to right. A
noun phrase is a run of words that are nothing else (verb, preposition, adverb): a noun need not be known, a verb must be, or stand
before an article. What a negation rules out ("not the red one", "without touching the cup") is never returned. "It" is the thing
handled last, or in a place ("on it") the thing named last before that one. Limits: English only; of two readings ("put the mug on
the tray in the box") the last in/on is where it goes, unless the object is "it"; a tool is the target of wiping verbs alone.
"""

import re
from dataclasses import dataclass

_SIDE = {"leftmost": "left", "rightmost": "right", "frontmost": "front", "rear": "back", "center": "middle", "centre": "middle",
         "topmost": "top", "upper": "top", "uppermost": "top", "highest": "top", "bottommost": "bottom", "lower": "bottom",
         "lowest": "bottom", "closest": "nearest", "furthest": "farthest"}  # fmt: skip
_SIDE |= {side: side for side in ("left", "right", "front", "back", "middle", "top", "bottom", "nearest", "farthest")}
_HERE = r"(left|right|front|back|rear|middle|center|centre|top|bottom|upper|lower)"
_ARTICLE = r"(?=(?:the|a|an|its|it|my|your|this|that|these|another) )"
_END = (r"(?: side| end)?(?= *(?:[,.;:?!]|$)| (?:and|then|on|onto|in|into|to|at|is|that|which|so|please|from|goes|should|must|until|"
        r"next|beside|under)\b)")
_REWRITE = tuple((re.compile(pattern), new) for pattern, new in (
    (r"n't\b|\bdont\b|\bcannot\b", " not"), (r"\b(it|that|there|what|which)'s\b", r"\1 is"), (r"'\w*", " "),
    (r"\b(left|right)[- ]hand ", r"\1 "), (r"[_-]", " "), (r"\b(\w+ward)s\b", r"\1"), (r"\btable top", "tabletop"),
    (r"\b(turn|switch)(?:ing|ed)? (?:on|off)\b", "switch"), (r"\b(knock|tip|turn|flip|roll) over\b", r"\1"),
    (r"\bget(?:ting)? rid of\b", "remove"), (r"\bleave (?:\w+ ){1,4}?(?:alone|untouched|where (?:it is|they are))\b", ","),
    (r"\bkeep (?:\w+ ){0,3}?(?:off|from|of)\b|\b(?:instead of|rather than|other than|except(?: for)?|never|without|avoid|ignore)\b", "not"),
    (r"\bout of the way(?: of)?\b|\baway from\b", "away_from"),
    (r"\b(nearest|closest|farthest|furthest) (?:to|from) ", r"SIDE \1 next_to "), (rf"\bfrom (?:the )?{_HERE}(?: side)? of\b", "from"),
    (rf"\b{_HERE} {_HERE}(?: side)? of (?:the )?", r"\1 "),
    (r"\b(?:(?:to|on|at|in|by) (?:(?:the|its|your) )?(?:far |very |immediate )?)?(left|right)(?: side)? of\b", r"\1_of"),
    (r"\bin front of\b|\b(?:to|at|on|in) the front of\b", "in_front_of"), (r"\b(?:to|at|on|in) the (?:back|rear) of\b", "behind"),
    (r"\bonto (?:the )?top of\b", "onto"),
    (r"\b(?:on|at|to) (?:the )?top of\b|\batop\b|\bupon\b|\b(?:in|at|on) the (?:middle|cent(?:er|re)) of\b", "on"),
    (r"\b(?:at|on|in|to) (?:the )?bottom of\b|\binside of\b|\bwithin\b", "in"), (r"\binside(?= *(?:[,.;!?]|$))", "in it"),
    (r"\bsticks? out\b", "come"), (r"\bstart(?:ing)? with\b", "with"),
    (r"\b(?:to|on|at) the (?:other|opposite|far|near) side of\b", "next_to"),
    (rf"\b(?:on|at|in|from) (?:(?:the|your|its) )?(?:far |very )?{_HERE}{_END}", r"SIDE \1"),
    (rf"\b(?:to|towards?) (?:(?:the|your|its) )?(?:far |very )?{_HERE}{_END}", ""),
    (r"\b(?:next|close|near|adjacent) to\b|\bbeside\b|\bnear(?:by)?\b|\balongside\b|\bagainst\b|"
     r"\bby (?=(?:the|a|an) (?!handle|rim|neck|stem|edge))", "next_to"),
    (r"\bin between\b", "between"), (r"\b(?:underneath|beneath|below)\b", "under"), (r"\b(on|in) to (?=(?:the|a) )", r"\1to "),
    (rf"\b(?:out of|off of|off {_ARTICLE}|from)", "from "), (r"\bover to\b|\btowards?\b", "to"), (rf"\bover {_ARTICLE}", "above "),
))  # fmt: skip

# How a preposition reads as a place, and as a way there (None: brings nothing there).
_PLACE = {"in": ("in", "into"), "into": ("in", "into"), "inside": ("in", "into"), "on": ("on", "onto"), "onto": ("on", "onto"),
          "to": ("next to", "to"), "at": ("at", "to"), "from": ("from", None)}  # fmt: skip
_PLACE |= {word: (word.replace("_", " "),) * 2 for word in "next_to between left_of right_of behind in_front_of under above".split()}
_PLACE |= {word: (None, None) for word in "with away_from past across along among through around for by as about like of".split()}
_PUT = set("""put place drop set store leave lower release stack lay deposit insert stow hang toss throw load park plug rest dump pour add
    keep return position arrange lean fit placed dropped stacked laid inserted stored thrown hung returned go goes
    belong belongs""".split())
_MOVE = set("""move push pull slide drag bring carry shove nudge sweep roll scoot transfer relocate shift knock deliver bump guide
    fall falls rolls slides moved pushed brought carried moving pushing""".split())
_TOOL = set("""wipe cover clean scrub dry hit stir fill cut dust polish rub seal""".split())
_VERB = _PUT | _MOVE | _TOOL | set("""
    pick grab take grasp lift raise get fetch hold reach open close shut turn switch press flip rotate twist spin touch find look
    point give hand pass remove unstack want need make try stop see locate collect
    choose select use wash fold squeeze unscrew
    let apply gather retrieve zip unzip wrap unwrap peel spread stand undo screw tighten loosen lock unlock tilt tip empty swap
    toggle flick light tug haul hook grip swivel handing picking taking putting placing opening closing touching lifting holding
    giving turning pressing pulling picked taken lifted opened closed turned removed washed""".split())  # fmt: skip
_STATE = set("""is are was were lies lie lying sits sit sitting stands stand standing rests resting hangs hanging located kept stored
    placed""".split())
_SKIP = set("""i you me us we he she they someone somebody there here can could would will shall may might must should needs has have had
    having be been being do does did please kindly just now also then up down away back out off forward backward outward inward
    upward downward leftward rightward sideways clockwise counterclockwise anticlockwise carefully gently slowly quickly again over
    too how what where going currently still instead together straight yes no ok okay hey hi hello directly finally completely fully
    mind what's whose who left boils it's ll""".split())
_CLAUSE = {"if", "when", "once", "after", "before", "until", "while", "because", "so", "whenever"}
_PERSON = {"you", "i", "we", "he", "she", "they"}
_MARKS, _JOIN, _WHICH, _IT = set(",.;:?!"), {"and", "or", "but", "then"}, {"that", "which", "who"}, {"it", "them", "this", "these", "those"}
_ARTICLES = set("""the a an your my its his her their our this that these those both all each every any some more another two three
    four 2 3 4 other only far very""".split())
_STOP = set(_PLACE) | _STATE | _SKIP | _CLAUSE | _MARKS | _JOIN | _IT | _WHICH | {"not", "SIDE", "goes", "belongs", "should", "must"}
# These end a noun phrase unless more of it follows ("the round button").
_AFTER = set("""shut closed open dark bright lit apart home further round come comes goes glow glows glowing go shine shines shining
    stop stops travel upright upside travels face faces spin tumble""".split())
_NEVER = set(_PLACE) | _MARKS | _JOIN | _IT | _WHICH | {"not", "SIDE"}  # no noun, even after an article
_NOTHING = set("""left right side end way air bit push nudge twist turn shove spin tug robot arm hand hands gripper finger fingers moment
    everything nothing something anything place position direction location spot orientation force""".split())
_PART = set("""corner edge lid handle rim door drawer shelf surface bottom top layer compartment""".split())
_COLOUR = set("""red blue green yellow white black pink purple orange brown grey gray silver gold violet magenta""".split())
_COMPARED = {"smaller", "larger", "bigger", "smallest", "largest", "biggest", "taller", "tallest", "shorter", "shortest", "one"}
_PLURAL_ONLY = {"clothes", "scissors", "glasses", "pliers", "tongs", "pants", "trousers", "shorts", "goggles", "headphones", "lens",
                "canvas", "gas"}  # fmt: skip

_SINGULAR = {"ies": "y", "elves": "elf", "nives": "nife", "aves": "af", "sses": "ss", "xes": "x", "ches": "ch", "shes": "sh", "oes": "o",
             "s": ""}  # fmt: skip


@dataclass
class Thing:
    """A noun phrase without article and side words, and how it is told from others of its kind."""

    noun: str
    side: str | None = None
    place: str | None = None
    references: tuple[str, ...] = ()

    def put(self, place: str, nouns: tuple[str, ...]) -> None:
        """Note a place; a second one only adds its nouns."""
        self.place, self.references = self.place or place, self.references + nouns


@dataclass
class Step:
    """A thing to handle, and where it goes. prep: the word that told so; joined: named in one breath with the step before ("A and B")."""

    target: Thing
    relation: str | None = None
    destination: Thing | None = None
    prep: str | None = None
    joined: bool = False


def read(instruction: str) -> tuple[list[Step], list[str], list[str]]:
    """(steps, nouns, nouns ruled out) of an instruction; no step where it names nothing to look at."""
    reader = _Reader(tokens(instruction))
    reader.walk()
    if not reader.steps and reader.waiting:  # "put it in the basket", "look behind the sofa"
        prep, thing = reader.waiting[-1]
        placed = reader.verb in _PUT | _MOVE and _PLACE[prep][1]
        reader.steps = [Step(Thing(""), _PLACE[prep][1], thing) if placed else Step(thing)]
    for before, step in reversed(list(zip(reader.steps, reader.steps[1:], strict=False))):
        if step.joined and before.relation is None:
            before.relation, before.destination = step.relation, step.destination
    return reader.steps, reader.main, reader.refused


def tokens(instruction: str) -> list[str]:
    """Words, marks, and one token for each way to say a place ("next_to")."""
    text = instruction.lower().replace("’", "'")
    for pattern, new in _REWRITE:
        text = pattern.sub(f" {new} " if "\\1" not in new else f" {new}", text)
        text = re.sub(r" +", " ", text)
    return re.findall(r"[a-zA-Z0-9à-ɏ]+(?:_[a-z]+)*|[,.;:?!]", text)


def singular(word: str) -> str:
    """One of many: "boxes" -> "box". Words that only look plural stay."""
    if word in _PLURAL_ONLY or not word.endswith("s") or word.endswith(("ss", "us", "is")) or len(word) < 4:
        return word
    end = next(end for end in _SINGULAR if word.endswith(end) and len(word) > len(end) + 1)
    return word.removesuffix(end) + _SINGULAR[end]


class _Reader:
    """The walk. verb: the last one; fresh: it has no object yet; bound: the next place tells where the last thing is ("that is in ...");
    waiting: places named before any target; spoken: things in the order of their naming."""

    def __init__(self, words: list[str]):
        self.words, self.at, self.steps, self.spoken, self.waiting, self.main, self.refused = words, 0, [], [], [], [], []
        self.verb, self.fresh, self.bound, self.joined, self.aside, self.sure, self.last = None, False, False, False, False, False, None

    def word(self, ahead: int = 0) -> str:
        return self.words[self.at + ahead] if self.at + ahead < len(self.words) else ""

    def walk(self) -> None:
        while self.at < len(self.words):
            word = self.word()
            if word == "not":
                self._negated()
            elif word == "SIDE":
                if self.last:
                    self.last.side = _SIDE[self.word(1)]
                self.at += 2
            elif word in _PERSON and self.last and not self.fresh and self.words[self.at - 1] not in _MARKS:
                self._said_by()
            elif self._is_verb():
                self.bound = self.bound and word in _STATE
                if not self.bound:
                    self.verb, self.fresh, self.joined, self.sure = word, True, False, False
                self.at += 1
            elif word in _PLACE:
                self._place()
            elif (word in _WHICH and self.last and not self.fresh) or (word in _STATE and self.last and not (self.aside and self.steps)):
                self.bound = True
                self.at += 1
            elif word in _IT and not (word in _ARTICLES and self._content(1)):
                self.at += 1
                self._pronoun(word)
            elif self.bound and word not in _ARTICLES and self._content():
                self.at += 1  # "is dark"
            elif word in _ARTICLES or self._content():
                thing = self._thing()
                if thing:
                    self._object(thing)
            else:
                self.aside = word in _CLAUSE or (self.aside and word not in _MARKS)
                self.joined = word in ("and", ",") or (self.joined and word not in _MARKS)
                if word in ("be", "been"):  # "should be on the stove", "must be placed"
                    self.verb, self.bound = "put", False
                self.at += 1

    def _content(self, ahead: int = 0) -> bool:
        word = self.word(ahead)
        if word in _AFTER or word in _SIDE:
            return self._content(ahead + 1)
        if word == "can":  # a tin, unless somebody can
            return self.at + ahead > 0 and not self._content(ahead + 1) and self.word(ahead + 1) not in _VERB | {"you", "i", "we", "be"}
        if word.endswith("ly") and len(word) > 5:
            return False
        return bool(word) and word not in _STOP and word not in _VERB and word not in _ARTICLES

    def _is_verb(self) -> bool:
        """A known verb, or any word before an article."""
        word, after = self.word(), self.word(1)
        if (word in _SIDE and self._content(1)) or (word in _STATE and self.last and not self.fresh and self._content(-1)):
            return False  # "the lower left corner", "a can placed on the shelf"
        governs = after in _ARTICLES - _WHICH or after in ("it", "them")
        return (word in _VERB and not (word in _STATE and self.bound)) or (self._content() and word not in _SIDE and governs)

    def _thing(self) -> Thing | None:
        """The noun phrase that starts here, with what "of" adds; None for one that names nothing to look at."""
        found, side, article, start = [], None, False, self.at
        while self.word():
            word, after = self.word(), self.word(1)
            if word in _ARTICLES and not found:
                article = True
            elif word in _SIDE and (self._content(1) or (not found and (after in _SIDE or after == "of"))):
                side = side or _SIDE[word]
            elif word == "and" and found and set(found) <= _COLOUR and after in _COLOUR:
                found.append(word)  # the yellow and white mug
            elif article and not found and word not in _NEVER:
                found.append(word)  # after an article even a verb is a noun
            elif article and found and word in _VERB - _STOP - _AFTER and after not in _ARTICLES and after not in _IT:
                found.append(word)
            elif found and (word.isdigit() or (word.endswith("ed") and len(word) > 3 and not self._content(1))):
                break  # "the knob 55 degrees", "a pot surrounded by ..."
            elif self._content() or (found and word in ("center", "centre")):
                found.append(word)
            else:
                break
            self.at += 1
        self.at = max(self.at, start + 1)
        return self._of(found, side)

    def _of(self, found: list[str], side: str | None) -> Thing | None:
        """Add "of ...": a part's whole, the contents of a can, or what is compared."""
        whole, definite = None, self.word(1) in _ARTICLES or bool(found and found[-1] in _PART)
        if self.word() == "of":
            self.at += 1
            whole = self._thing()
        if found and found[-1] in ("one", "ones") and self.spoken and not whole:
            found[-1] = self.spoken[-1].noun.split()[-1]
        if whole and (not found or found[-1] in _COMPARED):
            whole.noun, whole.side = " ".join([*(word for word in found if word != "one"), whole.noun]), side or whole.side
            return whole
        if not found or found[-1] in _NOTHING:
            return None
        head = [*found[:-1], singular(found[-1])]
        thing = Thing(" ".join([*head, "of", whole.noun] if whole and not definite else head), side)
        self.spoken.append(thing)
        self.main += [] if self.aside and self.steps else [thing.noun]
        if whole and definite:
            thing.put("of", (whole.noun, *whole.references))
        return thing

    def _negated(self) -> None:
        """Skip what is ruled out, to the end of the clause, or after "is" one word or place. "It" and "one" can still mean its noun."""
        self.at += 1
        short = self.bound
        while self.word() and self.word() not in _MARKS | {"but"} and not (self.word() == "and" and self.word(1) in _VERB):
            if short and self.word() in _PLACE:
                break
            begin = self.at
            if self.word() in _ARTICLES or self._content():
                thing = self._thing()
                self.refused += [thing.noun] if thing else []
            self.at = max(self.at, begin + 1)
        self.bound = False

    def _object(self, thing: Thing) -> None:
        """A thing named outside any place: the target, or the target of a further step."""
        step = self.steps[-1] if self.steps else None
        known = step and (step.target.noun, step.target.side) == (thing.noun, thing.side)
        if step is None and not self.aside:
            self.steps.append(Step(thing))
            for prep, place in self.waiting:
                self._attach(prep, place, self.steps[-1].target, first=True)
            self.waiting = []
        elif step and not known and not self.aside and (self.fresh or self.joined):
            self.steps.append(Step(thing, joined=self.joined and not self.fresh))
        self.fresh, self.joined, self.last = False, False, thing if not known else step.target

    def _pronoun(self, word: str) -> None:
        """It: the thing handled last; for "close it" where that went."""
        if self.steps:
            step = self.steps[-1]
            if self.fresh and step.destination and self.verb in ("open", "close", "shut", "lock"):
                self.steps.append(Step(step.destination))
            elif self.fresh and step.destination and self.verb in _PUT:
                self.steps.append(Step(step.target if word == "it" else step.destination))  # a stack is carried by its lower part
            self.fresh, self.sure = False, True
        elif self.spoken and not self.aside:
            self._object(self.spoken[-1])

    def _said_by(self) -> None:
        """As in "the cup you hold", "the mug I left on the desk": no step of its own."""
        self.at += 1
        while self.word() in {"are", "is", "have", "has", "currently", "just"}:
            self.at += 1
        self.bound = self.word() not in {"hold", "holding", "held", "carry", "carrying", "grasp", "have", "want", "need"}
        self.at += self.word() in _VERB | {"left", "holding", "carrying", "see", "saw", "held"}

    def _place(self) -> None:
        """A preposition and what it stands before."""
        prep = self.word()
        self.at += 1
        if prep == "to" and self.word() in _STATE:  # "to sit between"
            self.at, self.verb, self.bound = self.at + 1, "put", False
            return
        if self._is_verb():  # "to open the door", "by pulling it"
            return
        if self.word() in ("it", "them"):
            target = self.steps[-1].target if self.steps else None
            before = self.steps[-2].target if len(self.steps) > 1 and prep in ("in", "into") else None
            thing = before or next((thing for thing in reversed(self.spoken) if thing is not target), None)
            self.at += 1
        elif self.word() in _ARTICLES or self._content():
            thing = self._thing()
        else:
            thing = None  # a particle: "put it in"
        if thing is None:
            return
        if prep == "between" and self.word() == "and" and (self.word(1) in _ARTICLES or self._content(1)):
            self.at += 1
            other = self._thing()
            if other:
                thing.put("and", (other.noun,))
        prep = "in" if self.verb == "reach" else prep
        if prep == "with":
            return self._with(thing)
        if _PLACE[prep][0] is None:
            return None
        if not self.steps and not (self.last and (self.bound or self.aside)):
            self.waiting.append((prep, thing))
        else:
            self._attach(prep, thing, self.last or self.steps[-1].target)
        self.last = thing if not self.bound else self.last
        self.bound = False

    def _with(self, thing: Thing) -> None:
        """The tool is what the hand handles; what it works on is where it goes."""
        if not self.steps:
            self._object(thing)
        elif self.verb in _TOOL:
            self.steps[-1] = Step(thing, "onto", self.steps[-1].target, "with")

    def _attach(self, prep: str, thing: Thing, to: Thing, first: bool = False) -> None:
        """Decide whether a place is where the target goes, or where the thing `to` is."""
        step, (place, relation) = self.steps[-1] if self.steps else None, _PLACE[prep]
        goes = prep in ("into", "onto", "to")
        if first:
            arrives = goes
        elif self.bound or step is None or relation is None or self.verb == "reach" or to.side == "nearest":
            arrives = False
        else:
            arrives = goes or self.verb in _PUT or (self.verb in _MOVE and prep not in ("in", "on"))
        if arrives and step.destination and not goes:  # "in the bowl next to the plate"; but "next to the plate in the bowl"
            arrives = not self.sure and prep in ("in", "on") and step.prep not in ("into", "onto", "to")
        if arrives:
            if step.destination:
                step.target.put(_PLACE[step.prep][0], (step.destination.noun, *step.destination.references))
            step.relation, step.destination, step.prep = relation, thing, prep
        else:
            (step.target if relation is None and step else to).put(place, (thing.noun, *thing.references))
