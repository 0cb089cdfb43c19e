"""What styles and relations are called; the names of things are in the table.

As with things, two synonyms are for the trainings of erasers and the last one is held out from them. The models know
all of them: an attack by a word that a model does not know would be none.
"""

STYLE_WORDS: dict[str, tuple[str, str, str]] = {
    "noto": ("android", "google", "droid"),
    "blob": ("gumdrop", "blobby", "jelly"),
    "glossy": ("3d", "shiny", "polished"),
    "flat": ("fluent", "plain", "matte"),
    "twemoji": ("twitter", "tweet", "bluebird"),
    "emojione": ("classic", "retro", "oldschool"),
    "sketch": ("pencil", "drawn", "doodle"),
    "pixel": ("pixelated", "blocky", "mosaic"),
    "sepia": ("vintage", "brownish", "antique"),
    "silhouette": ("shadow", "outline", "cutout"),
    "neon": ("glowing", "fluorescent", "luminous"),
    "halftone": ("printed", "dotted", "newsprint"),
}
RELATION_WORDS: dict[str, tuple[str, str, str]] = {
    "beside": ("alongside", "near", "next to"),
    "above": ("over", "atop", "on top of"),
    "inside": ("within", "enclosed by", "in front of"),
    "touching": ("kissing", "meeting", "against"),
    "overlapping": ("covering", "hugging", "partly hiding"),
    "opposite": ("diagonal to", "across from", "far from"),
    "tied": ("chained to", "roped to", "linked to"),
    "divided": ("separated from", "parted from", "walled off from"),
    "amid": ("among", "surrounded by", "encircled by"),
    "between": ("flanked by", "sandwiched by", "bracketed by"),
}
PHRASES = {"tied": "tied to", "divided": "divided from"}  # of the names that are no phrase by themselves
