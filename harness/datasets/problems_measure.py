"""Word problems about measures: speed, work, mixtures, area, volume, units, time, growth."""

from __future__ import annotations

from fractions import Fraction

from harness.datasets.arithmetic import Draw, Problem, money, number


def pump_fill(d: Draw) -> Problem:
    """A tank with an inflow, a leak and some water at the start."""
    tank = d.pick(("tank", "pool", "pond", "cistern"))
    leak, gain, minutes, start = d.whole(2, 9), d.whole(5, 30), d.whole(8, 60), d.whole(20, 300, 10)
    inflow, full = gain + leak, start + gain * minutes
    question = d.pick((
        f"A {tank} for {full} liters already holds {start} liters. A pump adds {inflow} liters a minute, but {leak} liters a minute leak "
        "out. "
        f"How many minutes does it take until the {tank} is full?",
        f"Every minute {inflow} liters flow into a {tank} and {leak} liters flow out. It contains {start} liters now and can hold {full} "
        "liters. In how many minutes is it full?",
    ))  # fmt: skip
    solution = (
        f"The water rises by [[{inflow} - {leak}]] liters a minute. [[{full} - {start}]] liters are missing. That takes "
        f"[[{full - start} / {gain}]] minutes."
    )
    return Problem(question, solution, minutes)


def two_leg_trip(d: Draw) -> Problem:
    """Distance of a trip with two speeds."""
    who, how = d.name(), d.pick((("cycles", "rides", 12, 24), ("drives", "drives", 40, 90), ("rows", "rows", 3, 9)))
    v, w, t, u = d.whole(how[2], how[3]), d.whole(how[2], how[3]), d.whole(2, 5), d.whole(1, 4)
    question = d.pick((
        f"{who} {how[0]} for {t} hours at {v} kilometers per hour and then for {u} more hours at {w} kilometers per hour. How many "
        "kilometers is that in all?",
        f"At first {who} {how[1]} at a speed of {v} km/h for {t} hours. After a rest {who} goes on for {u} hours at {w} km/h. What "
        "distance in kilometers is covered?",
    ))  # fmt: skip
    solution = (
        f"The first part is [[{v} * {t}]] kilometers. The second part is [[{w} * {u}]] kilometers. Together: [[{v * t} + {w * u}]] "
        "kilometers."
    )
    return Problem(question, solution, v * t + w * u)


def average_speed(d: Draw) -> Problem:
    """Average speed over two legs, the return leg slower."""
    who = d.name()
    fast, slow = d.pick(((60, 40), (90, 45), (60, 30), (80, 20), (120, 60), (75, 50), (100, 25), (30, 20), (24, 12)))
    km = fast * slow // 2 // (10 if fast * slow % 20 == 0 and fast > 40 else 1) * d.whole(1, 4)
    question = d.pick((
        f"{who} drives {km} kilometers to a farm at {fast} kilometers per hour and comes back on the same road at {slow} kilometers per "
        "hour. "
        f"What is the average speed of the whole trip in kilometers per hour?",
        f"A delivery van covers {km} km at {fast} km/h. {who} drives it back the same way at {slow} km/h. What was the average speed, in "
        "km/h, over both ways?",
    ))  # fmt: skip
    there, back = Fraction(km, fast), Fraction(km, slow)
    solution = (
        f"The way there takes [[{km} / {fast}]] hours, the way back [[{km} / {slow}]] hours, together "
        f"[[{number(there)} + {number(back)}]] hours. "
        f"The whole distance is [[2 * {km}]] kilometers. The average speed is [[{2 * km} / {number(there + back)}]] kilometers per hour."
    )
    return Problem(question, solution, Fraction(2 * fast * slow, fast + slow))


def meeting_travelers(d: Draw) -> Problem:
    """Two travelers who move towards each other."""
    one, two = d.names(2)
    v, w, hours = d.whole(10, 60), d.whole(10, 60), d.whole(2, 8)
    km = (v + w) * hours
    question = d.pick((
        f"{one} and {two} live {km} kilometers apart. They leave at the same time and ride towards each other, {one} at {v} km/h and "
        f"{two} at {w} km/h. After how many hours do they meet?",
        f"Two buses start at the same moment from towns {km} kilometers apart, one driven by {one} at {v} km/h, one by {two} at {w} km/h, "
        "on the same road in opposite directions. "
        f"How many hours pass until they meet?",
    ))  # fmt: skip
    solution = f"They come closer by [[{v} + {w}]] kilometers every hour. They meet after [[{km} / {v + w}]] hours."
    return Problem(question, solution, hours)


def catch_up(d: Draw) -> Problem:
    """A faster runner closes a gap."""
    slow, fast = d.names(2)
    v, gap_speed, minutes, speed = d.whole(60, 150, 5), d.whole(10, 60, 5), d.whole(3, 12), "meters a minute"
    w = v + gap_speed
    lead = gap_speed * minutes
    question = d.pick(
        (
            f"{slow} walks {v} {speed} and is {lead} meters ahead of {fast}, who walks {w} {speed}. How many meters has {fast} walked "
            f"when catching up with {slow}?",
            f"{fast} follows {slow} at {w} {speed}. {slow} moves at {v} {speed} with a lead of {lead} meters. After how many meters does "
            f"{fast} reach {slow}?",
        )
    )
    solution = (
        f"The gap shrinks by [[{w} - {v}]] meters a minute. It closes after [[{lead} / {gap_speed}]] minutes. {fast} walks "
        f"[[{minutes} * {w}]] meters."
    )
    return Problem(question, solution, v * minutes + lead)


def work_together(d: Draw) -> Problem:
    """Two workers with different speeds on one job."""
    one, two = d.names(2)
    a, b = d.pick(
        ((3, 6), (4, 12), (6, 12), (10, 15), (20, 30), (12, 24), (5, 20), (6, 30), (8, 24), (9, 18), (12, 36), (10, 40), (15, 30), (20, 60))
    )
    scale, job = (
        d.whole(2, 9),
        d.pick(("paint a fence", "weed a garden", "clean the windows", "fold the laundry", "sort the mail", "stack the firewood")),
    )
    a, b = a * scale, b * scale
    whole = a * b
    question = d.pick(
        (
            f"{one} can {job} in {a} minutes, {two} needs {b} minutes for it. How many minutes do they need together?",
            f"Working alone, {one} takes {a} minutes to {job} and {two} takes {b} minutes. If both work at the same time, how many "
            "minutes does the job take?",
        )
    )
    solution = (
        f"Think of the job as {a} * {b} = {whole} small pieces. In a minute {one} does [[{whole} / {a}]] pieces and {two} does "
        f"[[{whole} / {b}]] pieces, "
        f"together [[{b} + {a}]]. They need [[{whole} / {a + b}]] minutes."
    )
    return Problem(question, solution, 1 / (Fraction(1, a) + Fraction(1, b)))


def crew_days(d: Draw) -> Problem:
    """Inverse proportion: fewer days with more workers."""
    job = d.pick(("pave a road", "harvest a vineyard", "build a wall", "insulate a hall", "dig a ditch"))
    crew, extra, days = d.whole(3, 12), d.whole(1, 9), d.whole(2, 7)
    first_days = days * (crew + extra)
    question = d.pick(
        (
            f"{crew} workers {job} in {first_days} days. Working at the same pace, how many days would {crew + extra} workers need?",
            f"To {job}, a crew of {crew} needs {first_days} days. {extra} more workers with the same speed join before the start. How "
            "many days does the work take now?",
        )
    )
    joined = f"There are now [[{crew} + {extra}]] workers. "
    solution = (
        f"The job takes [[{crew} * {first_days}]] days of work by one person. {joined}They need "
        f"[[{crew * first_days} / {crew + extra}]] days."
    )
    return Problem(question, solution, crew * days)


def juice_concentration(d: Draw) -> Problem:
    """Mixing two liquids of different strength."""
    who = d.name()
    a, b = d.pick(((2, 3), (1, 4), (3, 7), (4, 6), (3, 5), (2, 6), (5, 15), (6, 14), (1, 3), (4, 1), (7, 3), (3, 2)))
    p, q = d.some((5, 10, 20, 30, 40, 50, 60, 80), 2)
    question = d.pick(
        (
            f"{who} mixes {a} liters of a drink with {p}% juice and {b} liters of a drink with {q}% juice. What percentage of the mixture "
            "is juice?",
            f"{a} liters of {p}% cleaning solution are poured into {b} liters of {q}% solution by {who}. What is the strength of the "
            "mixture in percent?",
        )
    )
    first, second = Fraction(a * p, 100), Fraction(b * q, 100)
    solution = (
        f"The first part contains [[{a} * {p} / 100]] liters of the pure liquid, the second [[{b} * {q} / 100]] liters, together "
        f"[[{number(first)} + {number(second)}]] liters. The mixture has [[{a} + {b}]] liters. "
        f"Its strength is [[{number(first + second)} / {a + b} * 100]] percent."
    )
    return Problem(question, solution, Fraction(a * p + b * q, a + b))


def blend_price(d: Draw) -> Problem:
    """Price per kilogram of a blend."""
    who, what = d.name(), d.pick(("coffee", "tea", "nuts", "rice", "bird seed"))
    a, b = d.pick(((2, 3), (1, 4), (3, 7), (4, 6), (3, 5), (2, 6), (6, 14), (1, 3), (7, 3), (5, 5)))
    p, q = d.some(range(4, 25), 2)
    question = d.pick((
        f"{who} blends {a} kilograms of {what} at ${p} a kilogram with {b} kilograms at ${q} a kilogram. What does one kilogram of the "
        "blend cost in dollars?",
        f"A shop mixes two kinds of {what}: {a} kg worth ${p} per kg and {b} kg worth ${q} per kg. {who} buys one kilogram of the mixture "
        "at cost. How many dollars is that?",
    ))  # fmt: skip
    solution = (
        f"The first kind is worth [[{a} * {p}]] dollars, the second [[{b} * {q}]] dollars, together [[{a * p} + {b * q}]] dollars "
        f"for [[{a} + {b}]] kilograms. One kilogram costs [[{a * p + b * q} / {a + b}]] dollars."
    )
    return Problem(question, solution, Fraction(a * p + b * q, a + b))


def fence_cost(d: Draw) -> Problem:
    """Perimeter with a gap, times a price."""
    who, shape = d.name(), d.pick(("garden", "chicken run", "playground", "vegetable patch", "dog park"))
    a, b, gate, price = d.whole(8, 40), d.whole(6, 30), d.whole(2, 4), d.whole(5, 25)
    question = d.pick((
        f"{who} puts a fence around a rectangular {shape} of {a} by {b} meters, leaving {gate} meters open for a gate. A meter of fence "
        f"costs ${price}. What is the cost in dollars?",
        f"A rectangular {shape} is {a} meters long and {b} meters wide. Except for a gate of {gate} meters, {who} fences it at ${price} "
        "per meter. How many dollars does the fence cost?",
    ))  # fmt: skip
    around = 2 * (a + b)
    solution = (
        f"The perimeter is [[2 * ({a} + {b})]] meters. The fence is [[{around} - {gate}]] meters long. It costs "
        f"[[{around - gate} * {price}]] dollars."
    )
    return Problem(question, solution, 2 * a * price + 2 * b * price - gate * price)


def tile_boxes(d: Draw) -> Problem:
    """How many tiles cover a floor, and how many boxes."""
    who, room, per_meter = d.name(), d.pick(("kitchen", "hall", "bathroom", "terrace")), d.pick((2, 4, 5))
    a, b, box = d.whole(3, 9), d.whole(2, 7), d.pick((8, 10, 12, 20))
    side = 100 // per_meter
    tiles = a * b * per_meter**2
    boxes = -(-tiles // box)
    question = d.pick((
        f"The floor of a {room} is {a} meters by {b} meters. {who} covers it with square tiles of {side} by {side} centimeters, sold in "
        f"boxes of {box}. How many boxes are needed?",
        f"{who} tiles a {room} of {a} m by {b} m. Each tile is a square with sides of {side} cm, and a box has {box} tiles. How many "
        f"boxes must {who} buy?",
    ))  # fmt: skip
    solution = (
        f"Along one meter lie [[100 / {side}]] tiles, so a square meter takes [[{per_meter} * {per_meter}]] tiles. The floor has "
        f"[[{a} * {b}]] square meters "
        f"and takes [[{a * b} * {per_meter**2}]] tiles. {boxes - 1} boxes hold only {(boxes - 1) * box} tiles, {boxes} boxes hold "
        f"[[{boxes} * {box}]], "
        f"which is enough. So the number of boxes is [[{boxes - 1} + 1]]."
    )
    return Problem(question, solution, (tiles + box - 1) // box)


def garden_path(d: Draw) -> Problem:
    """Area of a border around a rectangle."""
    who, inside = d.name(), d.pick(("pond", "lawn", "flower bed", "pool"))
    a, b, w = d.whole(5, 25), d.whole(4, 20), d.whole(1, 3)
    question = d.pick((
        f"A rectangular {inside} measures {a} by {b} meters. {who} lays a path {w} meters wide all around it. What is the area of the "
        "path in square meters?",
        f"{who} plans a stone border of {w} meters width around a {inside} that is {a} meters long and {b} meters wide. How many square "
        "meters of stone are needed?",
    ))  # fmt: skip
    big_a, big_b = a + 2 * w, b + 2 * w
    solution = (
        f"With the path the length is [[{a} + 2 * {w}]] meters and the width is [[{b} + 2 * {w}]] meters, so the outer area is "
        f"[[{big_a} * {big_b}]] square meters. The {inside} itself has [[{a} * {b}]] square meters. The path has "
        f"[[{big_a * big_b} - {a * b}]] square meters."
    )
    return Problem(question, solution, 2 * w * (a + b + 2 * w))


def cubes_in_box(d: Draw) -> Problem:
    """Volume: cubes in a box, some removed."""
    who, edge = d.name(), d.pick((2, 3, 4, 5))
    x, y, z = d.whole(3, 8), d.whole(2, 7), d.whole(2, 6)
    gone = d.whole(1, x * y)
    question = d.pick((
        f"A box is {x * edge} cm long, {y * edge} cm wide and {z * edge} cm high. {who} fills it with cubes of {edge} cm and then takes "
        f"out {gone}. How many cubes are left in the box?",
        f"{who} stacks cubes with edges of {edge} centimeters in a crate of {x * edge} by {y * edge} by {z * edge} centimeters until it "
        "is full. "
        f"{gone} cubes are broken and removed. How many remain?",
    ))  # fmt: skip
    solution = (
        f"[[{x * edge} / {edge}]] cubes fit along the length, [[{y * edge} / {edge}]] along the width and [[{z * edge} / {edge}]] along "
        "the height. "
        f"That makes [[{x} * {y} * {z}]] cubes. [[{x * y * z} - {gone}]] are left."
    )
    volume = (x * edge) * (y * edge) * (z * edge)
    return Problem(question, solution, volume // edge**3 - gone)


def map_scale(d: Draw) -> Problem:
    """From centimeters on a map to hours on foot."""
    who, cm, scale, hours = d.name(), d.whole(3, 20), d.pick((20_000, 25_000, 50_000, 100_000)), d.pick((2, 5))
    km = Fraction(cm * scale, 100_000)
    question = d.pick(
        (
            f"On a map with the scale 1:{scale}, a trail is {cm} centimeters long. {who} walks {hours} kilometers an hour. How many hours "
            "does the trail take?",
            f"{who} measures {cm} cm on a map where 1 cm stands for {scale} cm. Hiking at {hours} km/h, how many hours does {who} need "
            "for this distance?",
        )
    )
    solution = (
        f"In reality the trail has [[{cm} * {scale}]] centimeters, which is [[{cm * scale} / 100000]] kilometers. It takes "
        f"[[{number(km)} / {hours}]] hours."
    )
    return Problem(question, solution, Fraction(cm * (scale // 1000), 100 * hours))


def lap_distance(d: Draw) -> Problem:
    """Meters to kilometers over several days."""
    who, how = d.name(), d.pick(("swims", "runs", "skates"))
    length, laps, days = d.pick((25, 50, 200, 250, 400)), d.whole(4, 30, 2), d.whole(3, 12)
    question = d.pick(
        (
            f"{who} {how} {laps} laps of {length} meters each day. How many kilometers is that in {days} days?",
            f"One lap is {length} meters long. For {days} days {who} {how} {laps} laps a day. What is the distance in kilometers?",
        )
    )
    solution = (
        f"A day has [[{laps} * {length}]] meters. {days} days have [[{days} * {laps * length}]] meters. In kilometers this is "
        f"[[{days * laps * length} / 1000]]."
    )
    return Problem(question, solution, days * Fraction(laps * length, 1000))


def bottle_filling(d: Draw) -> Problem:
    """Liters to milliliters, with a remainder."""
    who, drink = d.name(), d.pick(("lemonade", "apple juice", "syrup", "olive oil", "soup"))
    liters, ml = d.whole(3, 25), d.pick((180, 220, 240, 330, 350, 450, 700, 750))
    full = liters * 1000 // ml
    question = d.pick((
        f"{who} has {liters} liters of {drink} and fills as many bottles of {ml} milliliters as possible. How many milliliters are left "
        "over?",
        f"{liters} liters of {drink} are poured into bottles that hold {ml} ml each. {who} fills every bottle completely. How many "
        f"milliliters of {drink} remain at the end?",
    ))  # fmt: skip
    solution = (
        f"There are [[{liters} * 1000]] milliliters. {full} bottles take [[{full} * {ml}]] milliliters, and one more would not be filled. "
        f"[[{liters * 1000} - {full * ml}]] milliliters are left."
    )
    return Problem(question, solution, liters * 1000 % ml)


def video_seconds(d: Draw) -> Problem:
    """Minutes and seconds over several clips."""
    who, clips, minutes, seconds = d.name(), d.whole(4, 20, 2), d.whole(1, 6), d.whole(5, 55, 5)
    breaks = d.whole(3, 10)
    total = clips * (60 * minutes + seconds) + breaks * (clips - 1)
    question = d.pick((
        f"{who} joins {clips} clips into one video. Every clip runs {minutes} minutes and {seconds} seconds, and between two clips there "
        f"is a title of {breaks} seconds. "
        f"How many seconds long is the video?",
        f"A show has {clips} acts of {minutes} min {seconds} s each, with a pause of {breaks} seconds between one act and the next. {who} "
        "times it. How many seconds does the show last?",
    ))  # fmt: skip
    one = 60 * minutes + seconds
    solution = (
        f"One part lasts [[{minutes} * 60 + {seconds}]] seconds. All parts last [[{clips} * {one}]] seconds. There are [[{clips} - 1]] "
        f"gaps of {breaks} seconds, "
        f"in all [[{clips - 1} * {breaks}]] seconds. Together this is [[{clips * one} + {(clips - 1) * breaks}]] seconds."
    )
    return Problem(question, solution, total)


def rope_pieces(d: Draw) -> Problem:
    """Cutting a rope: pieces, rest, and price of what was used."""
    who, what = d.name(), d.pick(("rope", "ribbon", "wire", "cable"))
    meters, piece, cost = d.whole(5, 30), d.pick((30, 35, 45, 60, 70, 80)), d.price(1, 4)
    pieces = meters * 100 // piece
    question = d.pick(
        (
            f"{who} cuts a {what} of {meters} meters into pieces of {piece} centimeters and sells each whole piece for {money(cost)}. How "
            f"many dollars does {who} get?",
            f"From {meters} meters of {what}, {who} makes as many {piece} cm pieces as possible. One piece sells for {money(cost)}. What "
            "is the income in dollars?",
        )
    )
    solution = (
        f"The {what} has [[{meters} * 100]] centimeters. {pieces} pieces need [[{pieces} * {piece}]] centimeters, and the rest is too "
        "short for another one. "
        f"The pieces bring [[{pieces} * {number(cost)}]] dollars."
    )
    return Problem(question, solution, (meters * 100 - meters * 100 % piece) // piece * cost)


def doubling_colony(d: Draw) -> Problem:
    """Repeated doubling, then a loss."""
    what = d.pick(("bacteria", "water lilies", "yeast cells", "algae cells"))
    start, hours, times = d.whole(3, 40), d.whole(2, 6), d.whole(3, 6)
    lost = d.whole(1, start)
    unit = "days" if what == "water lilies" else "hours"
    question = d.pick((
        f"The number of {what} doubles every {hours} {unit}. At first there are {start}. After {hours * times} {unit}, {lost} are "
        f"removed. How many {what} are left?",
        f"{start} {what} multiply so that there are twice as many every {hours} {unit}. How many are there after {hours * times} {unit}, "
        f"when {lost} of them have just been taken out?",
    ))  # fmt: skip
    chain = " * ".join(["2"] * times)
    solution = (
        f"There are [[{hours * times} / {hours}]] doublings, a factor of [[{chain}]]. The number grows to [[{start} * {2**times}]]. "
        f"[[{start * 2**times} - {lost}]] are left."
    )
    return Problem(question, solution, (start << times) - lost)


TEMPLATES = (
    pump_fill, two_leg_trip, average_speed, meeting_travelers, catch_up, work_together, crew_days, juice_concentration, blend_price,
    fence_cost, tile_boxes, garden_path, cubes_in_box, map_scale, lap_distance, bottle_filling, video_seconds, doubling_colony,
    rope_pieces,
)  # fmt: skip
