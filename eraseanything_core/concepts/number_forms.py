"""Singular and plural of English nouns, by rules and a table, without WordNet.

The matcher needs them for whatever a user types, also where NLTK is not installed. A form that is no word at all does
no harm, for it stands in no prompt. A form that is another word does, so the sets below list those.
"""

from collections import defaultdict

# A line each: the singular, then its plurals. A compound takes the plural of its last part: werewolf, grandchild.
COMPOUNDING = """
wolf wolves
shelf shelves
knife knives
wife wives
midlife midlives
leaf leaves
loaf loaves
thief thieves
half halves
calf calves
sheaf sheaves
child children
foot feet
tooth teeth
mouse mice
scarf scarves scarfs
person people persons
"""
IRREGULAR = """
life lives
self selves
elf elves
handkerchief handkerchieves handkerchiefs
hoof hooves hoofs
wharf wharves wharfs
dwarf dwarves dwarfs
goose geese
louse lice
ox oxen
muskox muskoxen
die dice
penny pence pennies
quiz quizzes
fez fezzes
passerby passersby
crisis crises
thesis theses
hypothesis hypotheses
parenthesis parentheses
oasis oases
analysis analyses
basis bases
axis axes
axe axes
base bases
diagnosis diagnoses
ellipsis ellipses
criterion criteria
phenomenon phenomena
automaton automata automatons
bacterium bacteria
medium media mediums
curriculum curricula
stadium stadia stadiums
aquarium aquaria aquariums
terrarium terraria terrariums
memorandum memoranda
stratum strata
datum data
larva larvae
alga algae
antenna antennae antennas
nebula nebulae nebulas
vertebra vertebrae
supernova supernovae supernovas
formula formulae formulas
vertex vertices
vortex vortices
index indices indexes
matrix matrices
appendix appendices appendixes
cactus cacti cactuses
fungus fungi
nucleus nuclei
radius radii
alumnus alumni
stimulus stimuli
octopus octopuses octopi
hippopotamus hippopotamuses hippopotami
genus genera
corpus corpora
beau beaux
bureau bureaux bureaus
chateau chateaux
tableau tableaux
plateau plateaux plateaus
cherub cherubim cherubs
graffito graffiti
paparazzo paparazzi
potato potatoes
tomato tomatoes
hero heroes
superhero superheroes
echo echoes
torpedo torpedoes
volcano volcanoes volcanos
tornado tornadoes tornados
mosquito mosquitoes
buffalo buffaloes buffalo
sheep sheep
deer deer
moose moose
domino dominoes
mango mangoes mangos
"""
MANS = ("human", "german", "roman", "norman", "shaman", "talisman", "ottoman", "caiman", "cayman", "brahman")
# Words in -s that are no plurals, though the word without it exists.
NOT_PLURAL = set(
    """
    news shorts briefs tights slacks pants clothes goods means thanks hers ours yours theirs does this thus plus always
    its his is as us lens canvas species series mars woods savings customs works
    mathematics physics politics athletics gymnastics
    """.split()
)
NO_SINGULAR = NOT_PLURAL | {"glasses", "scissors", "trousers", "jeans", "goggles", "binoculars", "pajamas", "pyjamas"}
ALWAYS_PLURAL = set(
    """
    shorts briefs tights slacks pants clothes glasses scissors trousers jeans goggles binoculars pajamas pyjamas
    cattle police
    """.split()
)
SINGULAR_IN_S = set("atlas alias christmas pancreas rhinoceros chaos cosmos".split())
SIBILANTS = ("s", "x", "z", "ch", "sh")


def _read_table(table: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """{singular: plurals} and {plural: singulars}."""
    plurals = {}
    singulars = defaultdict(list)
    for line in table.split("\n"):
        singular, *forms = line.split() or [""]
        plurals[singular] = forms
        for form in forms:
            singulars[form].append(singular)
    return plurals, dict(singulars)


PLURALS, SINGULARS = _read_table(COMPOUNDING.strip() + "\n" + IRREGULAR.strip())
COMPOUND_PLURALS, COMPOUND_SINGULARS = _read_table(COMPOUNDING.strip())


def plural(noun: str) -> str:
    """The usual plural of a noun; of its last word when it has several."""
    *first, last = noun.split()
    return " ".join([*first, _plurals(last)[0]])


def number_forms(word: str) -> tuple[str, ...]:
    """A noun's other numbers: the plurals of a singular, the singular and further plurals of a plural.

    Args:
        word: in any casing. Of several words, the last one is taken.

    Returns:
        The forms in lower case, without the word itself.
    """
    *first, last = word.lower().split()
    if last in ALWAYS_PLURAL:
        return ()
    forms: dict[str, None] = {}
    for base in _singulars(last) or [last]:
        for form in (base, *_plurals(base)):
            if form != last and form not in NOT_PLURAL:
                forms[" ".join([*first, form])] = None
    return tuple(forms)


def is_plural(word: str) -> bool:
    """Whether a single word, in any casing, looks like a plural; `lens`, `cactus` and `axis` do not."""
    lowered = word.lower()
    if lowered in ALWAYS_PLURAL or lowered in SINGULARS:
        return lowered not in PLURALS
    return not lowered.endswith(("us", "is")) and lowered not in SINGULAR_IN_S and bool(_singulars(lowered))


def _plurals(word: str) -> list[str]:
    """The plurals of a single word, the usual one first."""
    if word in PLURALS:
        return PLURALS[word]
    # After the whole word: `mongoose` is no goose, which is why only parts that compound are listed.
    for singular, forms in COMPOUND_PLURALS.items():
        if word.endswith(singular):
            return [word.removesuffix(singular) + form for form in forms]
    if word.endswith("man") and not word.endswith(MANS):
        return [word.removesuffix("man") + "men"]
    return [with_s(word)]


def with_s(word: str) -> str:
    """A regular plural; the third person of a verb is spelled like it."""
    if word.endswith(SIBILANTS):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word.removesuffix("y") + "ies"
    return word + "s"


def _singulars(word: str) -> list[str]:
    """What a word can be the plural of; [] when it looks like a singular."""
    if word in NO_SINGULAR:
        return []
    if word in SINGULARS:
        return SINGULARS[word]
    if word in PLURALS:
        return []  # a cactus is no plural, though it ends in s
    for form, singulars in COMPOUND_SINGULARS.items():
        if word.endswith(form):
            return [word.removesuffix(form) + singular for singular in singulars]
    # Of `abdomen` this makes no word. Of `omen` it would make a country.
    if word.endswith("men") and word != "omen":
        return [word.removesuffix("men") + "man"]
    # Three letters are too few to tell: gas, bus and yes are none, and `as` would become `a`.
    if not word.endswith("s") or word.endswith("ss") or len(word) < 4:
        return []
    if word.endswith("ies"):
        return [word.removesuffix("ies") + "y", word.removesuffix("s")]
    stem = word.removesuffix("es")
    # `boxes` is of box and `horses` of horse. Both are tried, but not on stems as short as that of `toes`.
    if word.endswith("es") and stem.endswith((*SIBILANTS, "o")) and len(stem) > 2:
        return [stem, word.removesuffix("s")]
    return [word.removesuffix("s")]
