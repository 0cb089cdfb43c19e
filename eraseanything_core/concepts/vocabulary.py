"""The words that offline irrelevant words are chosen from: common in WordNet's tagged texts, harmless, of one sense.

Both kinds of the paper's D_ir: what has a physical look, and what has none.
"""

PHYSICAL_NOUNS = """
horse bird cow snake sheep fish rabbit bee goat ant feather
house door road wall window car ship chair roof truck clock camera fence bottle shoe desk blanket lamp piano bell
hat coat shirt jacket glove umbrella basket mirror pillow pencil envelope suitcase candle ladder bucket hammer
bridge tower tent barn chimney boat bicycle wagon tractor telephone microscope monument carpet curtain
coffee milk honey sandwich cheese bread apple soup
river sky sun moon hill valley pond mountain cloud island meadow rock
tree grass flower leaf seed bush
snow smoke fog lightning
water ice sand glass gold leather straw marble
eye hand hair knee tooth beard
child farmer doctor teacher sailor painter musician crowd
""".split()

ABSTRACT_NOUNS = """
idea theory method opinion science fact purpose skill memory mystery strategy tradition
anger joy pleasure pride boredom hope fear shame
patience courage honesty loyalty wisdom justice dignity precision virtue talent
freedom health marriage safety silence order chaos poverty success danger
language advice joke promise rumor poem question argument
effort research training decision trip election commerce worship crime
year season century afternoon moment future
price distance temperature speed strength importance difference
percentage average century law election democracy
""".split()

PHYSICAL_VERBS = """
walk run climb crawl swim dance fly sit kneel push throw carry cut dig paint cook eat drink write sleep smile wave
sweep drive row sew fish read shout sing wash
""".split()

ABSTRACT_VERBS = """
know decide forget guess compare believe remember agree promise argue explain advise admire envy hope doubt forgive
earn owe inherit plan learn choose hesitate confess insist recall predict
""".split()

PHYSICAL_ADJECTIVES = """
wet round tall heavy wooden bright hot cold narrow soft smooth striped square dusty sharp thick
""".split()

ABSTRACT_ADJECTIVES = """
honest clever famous lazy careful patient brave polite curious ancient cheap loyal organized qualified industrious
""".split()

WORDS = {
    "n": (PHYSICAL_NOUNS, ABSTRACT_NOUNS),
    "v": (PHYSICAL_VERBS, ABSTRACT_VERBS),
    "a": (PHYSICAL_ADJECTIVES + PHYSICAL_NOUNS, ABSTRACT_ADJECTIVES + ABSTRACT_NOUNS),
}
