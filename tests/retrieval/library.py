"""Two made documents to search in, a log as CSV and an almanac as PDF. Always the same bytes; all of it is invented."""

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

_STATIONS = (
    "Abancay Ford", "Chaski Wasi", "Huaca Bridge", "Illapa Pass", "Kuntur Ridge", "Llamacancha", "Mayu Bend",
    "Paqcha Falls", "Qolqa Stores", "Rumi Gate", "Suyu Cross", "Tambo Alto", "Urpi Hollow", "Wayra Saddle",
)  # fmt: skip

_RUNNERS = (
    "Amaru", "Anka", "Chuya", "Illari", "Inti", "Kusi", "Mayta", "Nina", "Puma", "Qori", "Sami", "Sayri", "Sumaq",
    "Tika", "Urma", "Waman", "Yaku",
)  # fmt: skip

_EVENTS = ("arrived", "departed", "handover", "rested", "waited")

_ORDINARY = ("on time", "", "light rain", "road clear", "two knots checked", "", "conch heard early", "dust", "",
             "new sandals", "fog till noon")  # fmt: skip

_ROWS = 220

_DISTINCT: dict[int, tuple[str, str, str, int, str]] = {
    9: ("Illapa Pass", "Waman", "waited", 5460, "lightning struck the signal mast and split it in two"),
    24: ("Huaca Bridge", "Nina", "stopped", 3120, "three grass cables frayed so the crossing stayed closed until dusk"),
    41: ("Qolqa Stores", "Sayri", "rested", 1980, "dried potatoes for the pouch were mouldy and forty sacks burned"),
    57: ("Mayu Bend", "Tika", "departed", 840, "swam the flooded ford with the cord wrapped around her head"),
    73: ("Kuntur Ridge", "Puma", "handover", 95, "fastest exchange ever written down at this post"),
    88: ("Rumi Gate", "Kusi", "refused", 610, "guard demanded a copper token that the messenger did not carry"),
    104: ("Tambo Alto", "Yaku", "injured", 7200, "twisted left ankle on loose shale and Urma took over the pouch"),
    119: ("Urpi Hollow", "Chuya", "found", 330, "a lost quipu of the eastern granary lay under the bench"),
    133: ("Wayra Saddle", "Inti", "returned", 2750, "wind too strong to stand upright and all traffic halted"),
    150: ("Paqcha Falls", "Anka", "repaired", 10800, "rebuilt the washed out steps with nineteen slabs of granite"),
    168: ("Chaski Wasi", "Mayta", "trained", 14400, "six apprentices passed the night trial and one fell asleep"),
    181: ("Suyu Cross", "Amaru", "misrouted", 4050, "fish for the governor went south by mistake and spoiled"),
    197: ("Llamacancha", "Sami", "delayed", 2220, "a herd of four hundred llamas blocked the causeway"),
    211: ("Abancay Ford", "Illari", "paid", 150, "ferryman asked double because the raft had a new hull"),
}

_ALMANAC = (
    """The Almanac of the Upper Road

    This almanac is kept by the stewards of the upper road and copied afresh at the end of every dry season.
    It tells what a runner must know of the fourteen stations between the ford and the high saddle, and it was
    last set down in the ninth year of the steward Qhawa.

    Heights are measured from the lake. The lowest station is Abancay Ford at 1,905 metres, where the air is
    warm and mosquitoes are a plague. Rumi Gate stands at 2,870 metres behind a wall of black stone. Tambo
    Alto lies at 3,640 metres and is the first place where newcomers lose their breath. The highest of all is
    Wayra Saddle at 4,712 metres; water boils there so early that beans never become soft, and the crew lives
    on toasted maize.

    The whole stretch measures 61 kilometres. A letter that leaves the ford at sunrise is at the saddle before
    the second watch of the night, if nobody stumbles. The steepest leg is the one called the Ladder, 1,140
    stairs between Paqcha Falls and Kuntur Ridge, and it is never run downhill in the rain.

    Copies of this book lie at three places only: with the stewards, in the chest at Suyu Cross, and in the
    house of the knot reader at Chaski Wasi. Whoever finds an error ties a red thread around the page.""",
    """Rules for Runners

    A runner serves for fifteen days and is then sent home for as many. Nobody is taken before the eighteenth
    birthday, and nobody over forty carries a pouch, though older men may keep the fire and blow the conch.

    The person who brings a message repeats it aloud until the next one can say it back without a mistake.
    Only then does the pouch change hands. This is done while both are running, on the flat strip that every
    station keeps clear of stones for sixty paces.

    Sealed pouches are never opened on the road. He who breaks a seal is sent to the salt pans for a year, and
    his village pays a fine of two llamas. A pouch that falls into water is reported at once, even if it seems
    dry inside.

    Conch signals are few. One long call means that a runner is near. Two short calls ask for a healer. Three
    calls and a pause say that the road behind is cut. No other signal may be invented, because in the year of
    the false alarm five stations were left empty by a joke.

    Chewing coca is allowed on the climb and forbidden during a handover, for a full mouth garbles words. Dogs
    may sleep at a station but must not follow their master beyond the boundary stone, since one of them once
    bit a judge.""",
    """Storms and Seasons

    The wet season begins when the Pleiades return and ends about one hundred and thirty days later. In those
    months the legs above Paqcha Falls are run in pairs, so that one can fetch help.

    The worst storm in memory was the Grey Week. It snowed for six days without a break, eleven bridges were
    lost, and mail piled up at Tambo Alto until the storeroom door no longer closed. Since then each station
    above 3,500 metres keeps firewood for nine nights.

    Hail is more dangerous than snow. When the clouds over the ridge turn green, runners lie down beneath the
    nearest overhang and hold the pouch under the belly. Lightning seeks the mast at Illapa Pass; therefore
    the mast is lowered as soon as thunder follows the flash within ten heartbeats.

    Fog fills Urpi Hollow on most mornings of the cold months. White posts were set there every twelve paces,
    and a bell hangs on the last of them, which the keeper rings until the sun breaks through.

    Dry months bring another trouble. Springs between Rumi Gate and Suyu Cross fail in August, so a gourd of
    water is carried on that leg and refilled by nobody but the keeper of the cistern. A gourd left empty on
    its hook costs the careless one his next day of rest.""",
    """Knots and Cords

    Numbers travel on cords. A main cord as thick as a finger carries pendants, and each pendant holds one
    number in knots: units at the bottom, tens above them, hundreds above those. A gap without a knot stands
    for nothing at all.

    Colours tell what is counted. Yellow is maize, white is silver, brown is potatoes, and red is soldiers. A
    pendant of blue and green twisted together means that the count is a guess and must be repeated. Black was
    once used for deaths, but that custom was given up because nobody wished to carry it.

    Figure eight knots stand for a single one, long knots with two to nine turns for the other digits of the
    lowest row. Single overhand knots belong only to the higher rows. An apprentice who mixes them ties the
    same cord fifty times before supper.

    A cord is checked at every third station. The reader there compares its sum, tied on the topmost pendant,
    with the sum of the rest. If the two disagree, the cord is sent back together with a pebble, and the
    sender must come in person to explain it.

    Wet cords shrink by about a twentieth and their knots become hard to read. They are dried in the shade,
    hung over alder sticks, never at the fire, because heat makes the dyes run. Good alpaca fibre lasts thirty
    years.""",
    """Prices and Provisions

    Runners pay nothing at the stations, but travellers do. A night on straw costs one handful of cacao beans
    or a bundle of kindling. A bed with a blanket is three handfuls. Soup is free for everybody who arrives
    wet.

    Sandals are plaited from agave at Llamacancha and sold by the pair for a measure of salt. A runner wears
    out a pair in four days on gravel and in nine on paved road, and therefore the store at Qolqa Stores never
    holds fewer than six hundred pairs.

    The daily ration is two fists of toasted maize, a strip of dried meat as long as a hand, and one freeze
    dried potato. On the legs above Tambo Alto there is a spoon of honey besides. Maize beer is given on feast
    days alone, and never to somebody who still has a leg to run.

    The stewards buy llamas at the spring market of Suyu Cross. A strong male that bears thirty kilograms is
    worth eight bolts of cloth; a female with young is worth eleven. Animals with a cough are turned away at
    the gate.

    Lamp oil became dear after the drought, when a jar went for a whole bolt. Since that time the kitchens
    have burned tallow, which smokes, and the readers complain of sore eyes. Candles are kept for the copying
    of this book.""",
    """Bridges and Roads

    Seven rope bridges hang on the upper road. The longest is Huaca Bridge with a span of 48 metres; it is
    woven anew every June by the four villages on both banks, each of which brings its own cable of grass. The
    work takes three days, and on the last evening the old bridge is cut and left to the river.

    No more than five people cross at once, and llamas go one by one with covered eyes. When the handrail is
    wet the keeper strews ash upon the planks. A toll is not taken, but whoever damages a cable owes ten days
    of weaving.

    The paved parts are as wide as two men lying down. Drains cross beneath the surface every thirty paces,
    and it is the task of the nearest village to clear them of leaves before the rains. Where the road climbs
    steeper than one in four, it turns into stairs.

    Distances are marked by cairns, called apachetas, at which each passer leaves one stone. The cairn at
    Kuntur Ridge has grown taller than a house, and its northern side fell down in an earthquake that also
    cracked the cistern.

    Between Mayu Bend and Abancay Ford a tunnel of forty paces was dug to spare everybody the climb around the
    cliff. It collapsed twice and was walled up in the end; the entrance now serves as a cheese cellar.""",
    """Healing and Hardship

    Soroche, the sickness of the heights, shows itself in headache, sleeplessness and a blue tinge of the
    lips. The sufferer is led down by at least five hundred metres the same day and drinks an infusion of muna
    leaves. Bleeding the patient, as lowland doctors advise, has been forbidden since it killed the scribe
    Rimaq.

    Blisters are pricked with a cactus thorn and covered with llama fat. Frozen toes are warmed against
    another person's stomach, not rubbed with snow. A broken bone is bound between two halves of a cane and
    the runner is carried to the bone setter at Chaski Wasi, who is paid by the stewards.

    Snake bites happen only below Rumi Gate. The wound is tied off above, sucked out and washed with tobacco
    water. Of nineteen people bitten in the last ten years, two have died.

    Sore eyes from the glare on snow are prevented with a strip of dark gauze that is tied across the brow.
    Those who forgot theirs stay in a dark room for two days and are fed by hand.

    Every station keeps a red basket with bandages, thread, thorns, fat, ash soap and a whistle. It is
    inspected on the first day of each month, and what is missing is replaced from the stores within a week.
    The whistle is there for those too weak to call.""",
    """Feasts and Oddities

    The race of the new year is run from Rumi Gate to Illapa Pass by one runner of each station. The record is
    held by Sumaq of Urpi Hollow, who needed two hours and forty-one minutes and wept because she had hoped
    for less. The winner receives a cloak of hummingbird feathers and may sleep late for a month.

    On the night of the winter solstice all fires are put out and lit again from a mirror of polished bronze
    that is kept at Tambo Alto. If the sky is clouded, a fire drill of chonta wood is used, and the year is
    said to be a lean one.

    A ghost is reported near the walled tunnel: a man without a face who asks for the date. Runners are
    advised to answer politely and keep going. The stewards once sent a sceptic to spend a night there, and he
    came back with a cold and nothing else.

    Parrots were tried as messengers under the steward Tupaq. They learned the words quickly but repeated them
    to everybody, so that a secret tax was known in the market before it was levied. The eleven birds were
    given to the temple.

    The next copy of this almanac is due when the terraces of Llamacancha have been ploughed. Remarks go to
    the copyist Ollanta, who lives over the pottery and does not open before noon.""",
)


def write_library(folder: Path) -> list[Path]:
    """`runners.csv` and `almanac.pdf` in the folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    log, almanac = folder / "runners.csv", folder / "almanac.pdf"
    log.write_bytes(csv_log().encode())
    almanac.write_bytes(pdf(_ALMANAC))
    return [log, almanac]


def csv_log() -> str:
    """A header and 220 rows; the notes of fourteen say something that no other row says."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("time", "station", "runner", "event", "duration_s", "note"))
    for number in range(_ROWS):
        ordinary = (
            _STATIONS[number * 5 % len(_STATIONS)],
            _RUNNERS[number * 7 % len(_RUNNERS)],
            _EVENTS[number * 3 % len(_EVENTS)],
            300 + number * 389 % 1500,
            _ORDINARY[number * 4 % len(_ORDINARY)],
        )
        writer.writerow((_time(number), *_DISTINCT.get(number, ordinary)))
    return written.getvalue()


def _time(number: int) -> str:
    """Eleven rows a day from the first of May on, from six in the morning."""
    day, slot = divmod(number, 11)
    minutes = 6 * 60 + slot * 67 + number * 13 % 29
    return f"1502-05-{day + 1:02}T{minutes // 60:02}:{minutes % 60:02}"


def pdf(pages: Sequence[str]) -> bytes:
    """A PDF 1.4 in Helvetica, a text a page; lines are wrapped at about 90 characters, empty lines part paragraphs.

    Characters that Windows-1252 does not have become question marks. About 60 lines fit on a page.
    """
    numbers = range(4, 4 + 2 * len(pages), 2)
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in zip(numbers, pages, strict=True):
        content = _content(page)
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (number + 1),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        ]
    return _file(objects)


def _content(page: str) -> bytes:
    """One line of text an operator, from the top of the page down."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in page.split("\n\n")]
    lines = [line for paragraph in paragraphs for line in (*textwrap.wrap(paragraph, 90), "")]
    shown = [b"(%s) Tj T*" % _escaped(line) if line else b"T*" for line in lines]
    return b"\n".join((b"BT /F1 11 Tf 13 TL 56 786 Td", *shown, b"ET"))


def _escaped(line: str) -> bytes:
    raw = line.encode("cp1252", "replace")
    return raw.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")


def _file(objects: Sequence[bytes]) -> bytes:
    """Header, objects numbered from one, the table of their offsets, trailer."""
    written = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets: list[int] = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(written)
    written += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    written += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    written += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(written)
