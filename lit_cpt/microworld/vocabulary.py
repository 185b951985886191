"""The words the world is made of: attributes of its people, activities, weather. Data only."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of ``text``, so that a list of words stays readable."""
    return tuple(text.split())


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "city": words(
        "Lisbon Oslo Cairo Lima Kyoto Delhi Quito Tunis Sofia Riga Accra Hanoi Perth Boston Turin Havana "
        "Dublin Prague Seoul Geneva"
    ),
    "job": words(
        "baker painter farmer doctor singer tailor lawyer pilot miner sailor barber teacher plumber "
        "dancer banker writer potter butcher nurse chemist"
    ),
    "instrument": words(
        "piano violin flute drum harp guitar trumpet cello banjo organ lute tuba oboe sitar fiddle horn"
    ),
    "food": words("rice pasta soup bread cheese fish salad beans honey curry pizza eggs stew cake plums corn"),
}

SYLLABLES = words("ka ro mi ta ne lu so vi da ber lin mor fa zel tu pa gri no che wyn")

PASTIMES = words(
    "camping sewing baking fishing hiking gardening welding brewing weaving rowing packing mining racing "
    "printing carving riding painting moving cleaning fencing milking plowing roofing tuning "
    # the second half is of worlds with more than 72 activities
    "sailing mowing sanding glazing bowling digging felling hunting knitting loading marching pruning raking "
    "rigging sawing scouting skating sowing surfing tiling towing trading washing wiring"
)
SEASONS = ("summer", "winter", "spring")

VERBS = words(
    "cleaned lifted opened painted washed turned moved folded tied filled heated dried locked pulled cut "
    "shook checked pressed carried fixed"
)
TOOLS = words(
    "kettle rope lamp wheel bucket ladder blanket hammer basket candle mirror bottle shovel carpet needle "
    "saddle window barrel brush pillow stove fence boat cart clock door engine flag glove jar knife lock "
    "map net oar pan quilt rake sail tent"
)

WEATHER = words("cold warm quiet busy long dark bright slow wet dry")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SMALL_TALK = (
    "The weather in {city} was {weather} on {day}.",
    "On {day} the market in {city} was {weather}.",
    "People in {city} say that {day} is {weather}.",
    "The road to {city} is {weather} every {day}.",
)
