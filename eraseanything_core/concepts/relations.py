"""Relations that WordNet lacks, prepositions above all, or lists under a word that says something else first."""

PLACES = {
    "above": ("over", "higher than"),
    "across from": ("opposite", "facing"),
    "amid": ("amidst", "among", "in the middle of"),
    "amidst": ("amid", "among", "in the middle of"),
    "among": ("amid", "amidst", "in the middle of"),
    "around": ("surrounding", "all round"),
    "behind": ("in back of", "at the back of"),
    "below": ("under", "beneath", "underneath"),
    "beneath": ("under", "below", "underneath"),
    "beside": ("next to", "alongside", "by the side of"),
    "between": ("in between", "in the middle of"),
    "in": ("inside", "within"),
    "in front of": ("before", "ahead of"),
    "inside": ("in", "within"),
    "near": ("close to", "not far from"),
    "next to": ("beside", "alongside", "by the side of"),
    "on": ("on top of", "upon", "atop"),
    "on top of": ("on", "upon", "atop"),
    "opposite": ("across from", "facing"),
    "outside": ("out of", "not in"),
    "over": ("above", "higher than"),
    "overlapping": ("partly covering", "partly in front of"),
    "tied to": ("bound to", "roped to"),
    "touching": ("in contact with",),
    "under": ("below", "beneath", "underneath"),
    "within": ("in", "inside"),
}
# What is retained when a relation is erased: the ways in which two things can be to each other, none near another.
OTHER_PLACES = (
    "above",
    "beside",
    "inside",
    "touching",
    "tied to",
    "overlapping",
    "opposite",
    "behind",
    "around",
    "between",
    "far from",
    "below",
)
# What is retained when an act of two is erased. WordNet's nearest verbs are fragments or far off: `cling to`, `drive`.
OTHER_ACTS = (
    "dance",
    "talk",
    "walk",
    "sit on a sofa",
    "play chess",
    "wave",
    "read",
    "look at a map",
)
ACTS = {
    "back to back": ("with their backs together", "with backs touching"),
    "hand in hand": ("holding hands",),
    "hold": ("grasp", "grip"),
    "kiss": ("snog", "smooch"),
    "shake hand": ("handshake", "shaking hands"),
    "shake hands": ("handshake", "shaking hands"),
}
