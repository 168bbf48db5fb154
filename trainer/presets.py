"""The presets: a table of recipes. A row lists only the differences from the paper's recipe, `Recipe`'s defaults.

The sources of the numbers of `style` and `character`. None was tuned on the miniature: Adam's steps are per element, so a
rate that suits a narrow network is wrong for SD1.5.

- Rank 16, alpha 8, learning rate 5e-4 (text encoder 1e-4), cosine with 3 restarts, 5 % warm-up, min-SNR 5, batch 3: the
  kohya-colab notebook's. They belong together: an update is alpha / rank times B A, so an alpha of half the rank needs a
  larger learning rate.
- 3,000 pictures in total, whatever their number: that notebook's advice is 10 epochs of 200 to 400 pictures with repeats.
- style does not train the text encoder, since no word stands for a style; character does, as in that notebook and kohya_ss.
- character is not mirrored: a parting, a scar or a logo is on one side.
- style drops a tenth of the captions, as Stable Diffusion's own training did, so that guidance learns the style too.

A study on the miniature (`trainer/study/tables/presets.toml`; the figures are in docs/PICTURES.md) orders two choices as these
presets do: dropped captions are better with 10 and 20 pictures (with 50 no worse), and half the steps are worse. Training the
text encoder changes next to nothing, twice the steps help 50 pictures. Without min-SNR the held-out loss is lower, but that
loss is not weighted either.
"""

from __future__ import annotations

from trainer.recipe import LENGTH, MINIATURE, Fields, Recipe, home

PAPER, DEMO, STYLE, CHARACTER = "paper", "demo", "style", "character"
OWN_PICTURES = (STYLE, CHARACTER)
MADE_OF_DRAWINGS = ("quickdraw", "doodles")
_POPULAR: Fields = dict(rank=16, alpha=8.0, learning_rate=5e-4, lr_schedule="cosine_with_restarts", lr_cycles=3,
                                warmup_share=0.05, min_snr_gamma=5.0, batch=3, accumulation=1, samples=3000)  # fmt: skip

PRESETS: dict[str, Fields] = {
    STYLE:       _POPULAR | dict(caption_dropout=0.1),
    CHARACTER:   _POPULAR | dict(text_encoder=True, text_encoder_rate=1e-4, flip=False),
    PAPER:       {},
    # the paper's experiment on a small scale: two thirds of the words, up to 20 drawings of each. Dropped captions teach
    # guidance the style too, and the loss weighting is the one that the miniature was trained with: with min-SNR and no
    # dropped captions the pictures had the strokes but no longer showed the words
    DEMO:        dict(base=MINIATURE, data="doodles", categories="40", per_category=20, rank=16, learning_rate=3e-3, batch=8,
                      accumulation=1, steps=240, warmup=10, debiased=True, caption_dropout=0.1),
}  # fmt: skip
ON_MINIATURE: Fields = dict(learning_rate=3e-3, batch=8, samples=1000)
"""Changes to the presets for own pictures on the embedded miniature, which is for trying out: the demo's rate and batch,
because a narrow network needs larger steps, and a length that takes two CPU cores a minute or two."""
WEIGHTINGS = ("min_snr_gamma", "debiased")
"""Loss weightings, of which a recipe has at most one."""
PRODIGY_RATE = 1.0
"""Prodigy's own default: a factor on the step size that it estimates."""


def preset_for(data: str) -> str:
    """The default preset for the data: the paper's for drawings, `style` for the user's own pictures."""
    folder = home(data) if home(data).is_dir() else home(data.partition(",")[0])  # settings may follow it
    drawings = data in MADE_OF_DRAWINGS or not folder.is_dir() or any(folder.glob("*.npy"))
    return PAPER if drawings else STYLE


def settled(preset: str, given: Fields, *, miniature: bool) -> Fields:
    """The recipe's fields: those `given` by the user over those of `preset`.

    miniature: `preset` is for own pictures, and the given base is the embedded one.
    """
    values = dict(PRESETS[preset])
    if miniature:
        values |= ON_MINIATURE
    if "data" in given:
        values.pop("categories", None)  # the demo's are the doodles'
    if any(name in given for name in LENGTH):  # a given one replaces the preset's
        values = {name: value for name, value in values.items() if name not in LENGTH}
    if given.get("optimizer") == "prodigy":
        values |= {"learning_rate": PRODIGY_RATE, "text_encoder_rate": 0.0}
    return over(values, given)


def over(values: Fields, given: Fields) -> Fields:
    """`values` updated with `given`. A given loss weighting replaces the other."""
    if any(given.get(name) for name in WEIGHTINGS):
        values = {name: value for name, value in values.items() if name not in WEIGHTINGS}
    return values | given


def preset_line(preset: str, values: Fields, *, miniature: bool) -> str:
    """A line for a user who named no preset, or whose preset differs on the miniature."""
    recipe = Recipe(**values)
    others = ", ".join(name for name in PRESETS if name not in (preset, DEMO))
    return (f"own pictures: --preset {preset} (rank {recipe.rank}, learning rate {recipe.learning_rate:g}, batch "
            f"{recipe.batch}{', for trying out on the miniature' * miniature}); others: {others}")
