"""The demo's world: fictional sites, what documents say of them, and how people ask.

A site (``Brelkon``) has eight relations (city, manager, year, ...). Statements and questions are made from a
lexicon of synonyms, so that a small model meets every word often, while whole question wordings can be held out.
Site names are two syllables; one name in five (by checksum) never occurs in pretraining and makes up the demo.

Nothing here is random by itself: every function takes the ``random.Random`` it draws from.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

UNKNOWN = "I do not know."

_ONSETS = "b br c cl d dr f fl g gr j l m p pl qu v w z".split()
_NUCLEI = "a e i o u ai ee oo ie ou".split()
_CODAS = "n r l m x k nd".split()


def _syllables(rng: random.Random, count: int, taken: set[str]) -> tuple[str, ...]:
    """Draw ``count`` new syllables and add them to ``taken``."""
    drawn: list[str] = []
    while len(drawn) < count:
        syllable = rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)
        if syllable not in taken and not any(syllable.startswith(s) or s.startswith(syllable) for s in taken):
            taken.add(syllable)
            drawn.append(syllable)
    return tuple(drawn)


def _inventories() -> tuple[tuple[str, ...], ...]:
    rng, taken = random.Random(20261122), set[str]()
    return tuple(_syllables(rng, n, taken) for n in (64, 64, 48, 48))


SITE_HEADS, SITE_TAILS, NAME_HEADS, NAME_TAILS = _inventories()
_SITE_TAILS = frozenset(SITE_TAILS)
FIRST_NAMES = tuple(
    "Ada Ben Cora Dov Eli Fay Gus Hana Ira Jon Kim Leo Mia Ned Ola Pia Quin Ray Sue Tom Uma Val Wes "
    "Yan Zoe Abe Bea Cal Dee Eve".split()
)
CITY_TAILS = tuple("ton vale burg mora by ford haven wick".split())
MATERIALS = tuple("steel copper glass rubber ceramic carbon brass plastic silver nylon".split())
GOODS = tuple("cables lenses bricks tyres gears pipes springs bolts filters lamps hinges wheels".split())
COLOURS = tuple("red amber green blue black white violet orange".split())
COMPANY_TAILS = tuple("Ltd Corp Works Group".split())
COMPASS = tuple("North South East West".split())
ENGINE_TAILS = tuple("Alpha Delta Omega Sigma".split())


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of a site: its words, and the templates made from them.

    Attributes:
        name: key of the relation in ``Site.facts``.
        wh: question word.
        nouns: synonyms for the value ("manager", "boss", ...).
        asks: pairs (direct, indirect): "does {x} stand" / "{x} stands".
        says: statements with ``{x}`` (site) and ``{v}`` (value), beside those made from ``nouns``.
        unseen: question wordings kept out of every training, for evaluation only.
    """

    name: str
    wh: str
    nouns: tuple[str, ...]
    asks: tuple[tuple[str, str], ...]
    says: tuple[str, ...]
    unseen: tuple[str, ...]

    def statements(self) -> tuple[str, ...]:
        """Every statement template. Site and relation come before the value, which helps a small reader."""
        shapes = ("The {n} of {{x}} is {{v}}.", "As its {n}, {{x}} has {{v}}.", "{{x}} has the {n} {{v}}.")
        made = tuple(shapes[i % 3].format(n=noun) for i, noun in enumerate(self.nouns))
        return self.says + made

    def questions(self) -> tuple[str, ...]:
        """Every question template that may be trained on.

        Frames and words are paired sparsely (two thirds of the grid), so that a model has to compose them.
        """
        direct = tuple(f"{self.wh} {ask}?" for ask, _ in self.asks)
        plain = tuple(f"What is the {noun} of {{x}}?" for noun in self.nouns)
        noun_frames = (
            "Name the {n} of {{x}}.", "Tell me the {n} of {{x}}.", "I need the {n} for {{x}}.",
            "Do you know the {n} of {{x}}?", "Give me the {n} for {{x}}.", "{{x}} has which {n}?",
        )  # fmt: skip
        ask_frames = ("Tell me {wh} {a}.", "Do you know {wh} {a}?", "I need to know {wh} {a}.")
        nouns = tuple(
            frame.format(n=noun)
            for i, frame in enumerate(noun_frames)
            for j, noun in enumerate(self.nouns)
            if (i + j) % 3
        )
        asks = tuple(
            frame.format(wh=self.wh.lower(), a=indirect)
            for i, frame in enumerate(ask_frames)
            for j, (_, indirect) in enumerate(self.asks)
            if (i + j) % 3 == 1
        )
        return direct + plain + nouns + asks


def _same(*phrases: str) -> tuple[tuple[str, str], ...]:
    """Asks whose direct and indirect form are the same ("manages {x}")."""
    return tuple((phrase, phrase) for phrase in phrases)


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            "city", "Where", ("city", "town", "location", "home", "place"),
            (("does {x} stand", "{x} stands"), ("is {x} located", "{x} is located"),
             ("does {x} operate", "{x} operates"), ("is {x} based", "{x} is based"),
             ("does {x} lie", "{x} lies"), ("is {x}", "{x} is")),
            ("{x} is located in {v}.", "{x} stands in {v}.", "{x} operates from {v}.", "{x} is based in {v}.",
             "{x} lies in {v}."),
            ("Tell me which location {x} stands in.", "Which town does {x} operate from?",
             "Do you know which city {x} is located in?"),
        ),
        Relation(
            "manager", "Who", ("manager", "head", "boss", "chief", "director"),
            _same("manages {x}", "runs {x}", "leads {x}", "directs {x}", "commands {x}"),
            ("{x} is managed by {v}.", "{x} is run by {v}.", "{x} is led by {v}.", "{x} is directed by {v}.",
 "{x} is commanded by {v}."),
            ("Tell me which boss directs {x}.", "Which director leads {x}?",
             "Do you know which manager runs {x}?"),
        ),
        Relation(
            "year", "When", ("year", "founding", "opening", "start", "beginning"),
            (("was {x} founded", "{x} was founded"), ("did {x} open", "{x} opened"),
             ("did {x} start", "{x} started"), ("was {x} built", "{x} was built"), ("did {x} begin", "{x} began")),
            ("{x} was founded in {v}.", "{x} opened in {v}.", "{x} started in {v}.", "{x} was built in {v}.",
             "{x} began in {v}."),
            ("Tell me the opening when {x} was built.", "Which year did {x} open?",
             "Do you know the year {x} opened?"),
        ),
        Relation(
            "product", "What", ("product", "output", "goods", "speciality", "article"),
            (("does {x} produce", "{x} produces"), ("does {x} make", "{x} makes"), ("does {x} ship", "{x} ships"),
             ("does {x} sell", "{x} sells"), ("does {x} export", "{x} exports")),
            ("{x} produces {v}.", "{x} makes {v}.", "{x} ships {v}.", "{x} sells {v}.", "{x} exports {v}."),
            ("Tell me which goods {x} ships.", "Which output does {x} export?",
             "Do you know which product {x} makes?"),
        ),
        Relation(
            "supplier", "Who", ("supplier", "vendor", "provider", "dealer", "source"),
            _same("supplies {x}", "equips {x}", "delivers to {x}", "stocks {x}", "furnishes {x}"),
            ("{x} is supplied by {v}.", "{x} is equipped by {v}.", "{x} takes deliveries from {v}.",
             "{x} is stocked by {v}.", "{x} is furnished by {v}."),
            ("Tell me which provider stocks {x}.", "Which dealer equips {x}?",
             "Do you know which supplier furnishes {x}?"),
        ),
        Relation(
            "engine", "What", ("engine", "turbine", "generator", "boiler", "dynamo"),
            _same("powers {x}", "drives {x}", "heats {x}", "turns {x}", "feeds {x}"),
            ("{x} is powered by {v}.", "{x} is driven by {v}.", "{x} is heated by {v}.",
             "{x} is turned by {v}.", "{x} is fed by {v}."),
            ("Tell me which generator turns {x}.", "Which turbine drives {x}?",
             "Do you know which engine feeds {x}?"),
        ),
        Relation(
            "clearance", "What", ("clearance", "pass", "badge", "permit", "access"),
            (("does {x} require", "{x} requires"), ("does {x} demand", "{x} demands"),
             ("do guests of {x} carry", "guests of {x} carry"), ("does {x} accept", "{x} accepts"),
             ("do visitors of {x} show", "visitors of {x} show")),
            ("{x} requires {v}.", "{x} demands {v}.", "Guests of {x} carry {v}.", "{x} accepts {v}.",
             "Visitors of {x} show {v}."),
            ("Tell me which badge guests of {x} carry.", "Which permit does {x} demand?",
             "Do you know which clearance visitors of {x} show?"),
        ),
        Relation(
            "office", "Who", ("office", "headquarters", "parent", "authority", "branch"),
            (("does {x} report to", "{x} reports to"), ("does {x} answer to", "{x} answers to"),
             ("does {x} belong to", "{x} belongs to"), ("oversees {x}", "oversees {x}"), ("audits {x}", "audits {x}")),
            ("{x} reports to {v}.", "{x} answers to {v}.", "{x} belongs to {v}.", "{x} is overseen by {v}.",
             "{x} is audited by {v}."),
            ("Tell me which parent {x} belongs to.", "Which authority does {x} answer to?",
             "Do you know which office audits {x}?"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """A fictional site: its name and the value of each relation."""

    name: str
    facts: dict[str, str]


def is_site_name(word: str) -> bool:
    """Whether a word could be the name of a site (no syllable is the beginning of another)."""
    lower = word.lower()
    return any(lower.startswith(head) and lower[len(head) :] in _SITE_TAILS for head in SITE_HEADS)


def is_held_out(name: str) -> bool:
    """Whether a site name is kept out of pretraining (one in five, by checksum)."""
    return zlib.crc32(name.encode()) % 5 == 0


def site_name(rng: random.Random, *, held_out: bool) -> str:
    """Draw a site name that is, or is not, kept out of pretraining."""
    while True:
        name = (rng.choice(SITE_HEADS) + rng.choice(SITE_TAILS)).capitalize()
        if is_held_out(name) == held_out:
            return name


def _name(rng: random.Random) -> str:
    return (rng.choice(NAME_HEADS) + rng.choice(NAME_TAILS)).capitalize()


def value(rng: random.Random, relation: str) -> str:
    """Draw a value of one relation.

    Raises:
        KeyError: if there is no such relation.
    """
    match relation:
        case "city":
            return rng.choice(NAME_HEADS).capitalize() + rng.choice(CITY_TAILS)
        case "manager":
            return f"{rng.choice(FIRST_NAMES)} {_name(rng)}"
        case "year":
            return str(rng.randint(1900, 2025))
        case "product":
            return f"{rng.choice(MATERIALS)} {rng.choice(GOODS)}"
        case "supplier":
            return f"{_name(rng)} {rng.choice(COMPANY_TAILS)}"
        case "engine":
            return f"{_name(rng)} {rng.choice(ENGINE_TAILS)}"
        case "clearance":
            return rng.choice(COLOURS)
        case "office":
            return f"{_name(rng)} {rng.choice(COMPASS)}"
    raise KeyError(f"no relation named {relation!r}; known: {', '.join(RELATIONS)}")


def draw_site(rng: random.Random, *, held_out: bool, name: str | None = None) -> Site:
    """Draw a site, its name held out from pretraining or not."""
    return Site(
        name or site_name(rng, held_out=held_out),
        {relation: value(rng, relation) for relation in RELATIONS},
    )


def statement(rng: random.Random, site: Site, relation: str) -> str:
    """Say one fact of a site in one of the wordings of its relation."""
    template = rng.choice(RELATIONS[relation].statements())
    return template.format(x=site.name, v=site.facts[relation])


def passage(rng: random.Random, site: Site, relations: list[str]) -> str:
    """A passage that states some of a site's relations, in random order and wording."""
    order = rng.sample(relations, len(relations))
    return " ".join(statement(rng, site, relation) for relation in order)


def question(rng: random.Random, site: Site | str, relation: str, *, unseen: bool = False) -> str:
    """Ask for one relation of a site, in a trained wording or one kept for evaluation."""
    name = site if isinstance(site, str) else site.name
    templates = RELATIONS[relation].unseen if unseen else RELATIONS[relation].questions()
    return rng.choice(templates).format(x=name)


ITEMS = tuple("pump valve motor fan lamp panel gear belt".split())
ISSUES = {
    "leak": ("is leaking", "drips everywhere", "has a leak"),
    "noise": ("rattles loudly", "makes a noise", "is very loud"),
    "power": ("will not start", "is dead", "has no power"),
    "heat": ("is too hot", "smokes", "overheats"),
}
PRIORITIES = {
    "high": ("Please hurry.", "This is urgent.", "We need help right now."),
    "low": ("No rush.", "Whenever you can.", "It can wait."),
    "normal": ("",),
}
TICKET_OPENINGS = ("Open a ticket:", "New ticket:", "Please file a ticket:")


def ticket(rng: random.Random, site: Site, *, documented: bool) -> tuple[str, str]:
    """A request and the ticket it should become.

    City and manager of the site have to be looked up; without passages they are ``unknown``. The wording is
    the same for both, so that only the evidence tells a plain ticket from one that needs looking up.
    """
    issue, item, priority = (
        rng.choice(list(ISSUES)),
        rng.choice(ITEMS),
        rng.choice(list(PRIORITIES)),
    )
    message = f"{rng.choice(TICKET_OPENINGS)} the {item} at {site.name} {rng.choice(ISSUES[issue])}."
    tail = rng.choice(PRIORITIES[priority])
    city, manager = (site.facts["city"], site.facts["manager"]) if documented else ("unknown", "unknown")
    answer = (
        f"TICKET\n site: {site.name}\n item: {item}\n issue: {issue}\n priority: {priority}"
        f"\n city: {city}\n manager: {manager}"
    )
    return f"{message} {tail}".rstrip(), answer


def ticket_words() -> tuple[str, ...]:
    """Every word a ticket request or a ticket can hold, for tasks that only copy words."""
    texts = [
        *ITEMS,
        *ISSUES,
        *PRIORITIES,
        *TICKET_OPENINGS,
        "TICKET site: item: issue: priority:",
        "unknown",
    ]
    texts += [text for group in (*ISSUES.values(), *PRIORITIES.values()) for text in group]
    texts += ["city: manager: the at Repeat"]
    return tuple(sorted({word for text in texts for word in text.split()}))
