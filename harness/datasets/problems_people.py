"""Word problems about people and counting: ages, groups, fractions, averages, ratios, schedules, packing, series."""

from __future__ import annotations

from fractions import Fraction

from harness.datasets.arithmetic import Draw, Problem


def age_sum(d: Draw) -> Problem:
    """One is k times as old as the other; the sum is known."""
    old, young = d.names(2)
    age, k, years = d.whole(4, 15), d.whole(2, 5), d.whole(3, 12)
    total = age * (k + 1)
    question = d.pick(
        (
            f"{old} is {k} times as old as {young}. Together they are {total} years old. How old will {old} be in {years} years?",
            f"The ages of {old} and {young} add up to {total}, and {old}'s age is {k} times {young}'s. What will {old}'s age be {years} "
            "years from now?",
        )
    )
    solution = (
        f"The sum is [[{k} + 1]] times {young}'s age, so {young} is [[{total} / {k + 1}]] years old. {old} is [[{k} * {age}]] years old. "
        f"In {years} years {old} will be [[{k * age} + {years}]]."
    )
    return Problem(question, solution, total - age + years)


def age_future(d: Draw) -> Problem:
    """A multiple that holds only in the future."""
    old, young = d.names(2)
    age, years, k = d.whole(3, 14), d.whole(2, 9), d.whole(2, 4)
    question = d.pick(
        (
            f"{young} is {age} years old. In {years} years {old} will be {k} times as old as {young} will be then. How old is {old} today?",
            f"{years} years from now, {old} will be exactly {k} times as old as {young}, who is {age} today. What is {old}'s present age?",
        )
    )
    solution = (
        f"In {years} years {young} will be [[{age} + {years}]]. {old} will then be [[{k} * {age + years}]]. Today {old} is "
        f"[[{k * (age + years)} - {years}]]."
    )
    return Problem(question, solution, k * age + (k - 1) * years)


def travel_to_school(d: Draw) -> Problem:
    """A fraction of a group, then a fraction of the rest."""
    school, a, b = d.pick(("school", "camp", "course", "factory")), d.whole(2, 6), d.whole(2, 5)
    n = a * b * d.whole(2, 15)
    walking, others = n // a, n - n // a
    by_bus = others // b
    question = d.pick((
        f"{n} people come to a {school}. 1/{a} of them walk. Of the others, 1/{b} take the bus and the rest come by bicycle. How many "
        "come by bicycle?",
        f"At a {school} with {n} people, one out of every {a} arrives on foot. One out of every {b} of the remaining people takes a bus; "
        "all others cycle. How many people cycle?",
    ))  # fmt: skip
    solution = (
        f"[[{n} / {a}]] people walk, so [[{n} - {walking}]] do not. Of these, [[{others} / {b}]] take the bus. "
        f"[[{others} - {by_bus}]] come by bicycle."
    )
    return Problem(question, solution, n * Fraction(a - 1, a) * Fraction(b - 1, b))


def recipe_scaling(d: Draw) -> Problem:
    """Scaling a recipe, minus what is in the cupboard."""
    who, dish, item = d.name(), d.pick(("soup", "curry", "cake", "bread", "stew")), d.pick(("flour", "lentils", "carrots", "sugar", "oats"))
    base, per, guests = d.whole(2, 6), d.whole(30, 120, 5), d.whole(7, 24)
    have = d.whole(50, per * guests - 50, 10)
    question = d.pick((
        f"A {dish} recipe for {base} people needs {base * per} grams of {item}. {who} cooks for {guests} people and has {have} grams of "
        f"{item} at home. "
        f"How many grams must {who} buy?",
        f"{who} wants to make {dish} for {guests} guests. The recipe uses {base * per} g of {item} for {base} servings. "
        f"With {have} g already in the cupboard, how many more grams are needed?",
    ))  # fmt: skip
    solution = (
        f"One person needs [[{base * per} / {base}]] grams. {guests} people need [[{guests} * {per}]] grams. {who} buys "
        f"[[{guests * per} - {have}]] grams."
    )
    return Problem(question, solution, Fraction(base * per * guests, base) - have)


def shop_inventory(d: Draw) -> Problem:
    """Stock with daily sales and one delivery."""
    shop, item = d.pick(
        (("pet shop", "bags of cat food"), ("hardware store", "light bulbs"), ("bookshop", "calendars"), ("kiosk", "postcards"))
    )
    per_day, days, delivery = d.whole(6, 30), d.whole(3, 9), d.whole(20, 120, 5)
    start = per_day * days + d.whole(5, 60)
    returned = d.whole(2, 9)
    question = d.pick((
        f"A {shop} has {start} {item}. It sells {per_day} a day for {days} days, then gets a delivery of {delivery}, and customers bring "
        f"back {returned}. How many {item} are in the shop now?",
        f"On Monday a {shop} counts {start} {item}. During {days} days {per_day} are sold daily. A truck brings {delivery} new ones, and "
        f"{returned} sold ones are returned. What is the stock?",
    ))  # fmt: skip
    sold = per_day * days
    solution = (
        f"[[{per_day} * {days}]] are sold, so [[{start} - {sold}]] remain. With the delivery there are [[{start - sold} + {delivery}]]. "
        f"With the returns there are [[{start - sold + delivery} + {returned}]]."
    )
    return Problem(question, solution, start + delivery + returned - days * per_day)


def day_schedule(d: Draw) -> Problem:
    """How many sessions with breaks fit into a day."""
    who, what = d.name(), d.pick(("piano lessons", "job interviews", "eye tests", "guided tours", "haircuts"))
    length, pause, count, start = d.whole(20, 50, 5), d.whole(5, 15, 5), d.whole(4, 9), d.whole(7, 10)
    span = count * length + (count - 1) * pause
    hours = -(-span // 60)
    free = hours * 60 - span
    question = d.pick((
        f"{who} gives {count} {what} in a row, starting at {start}:00. Each lasts {length} minutes, with a break of {pause} minutes "
        "between two of them. "
        f"How many minutes are left after the last one until {start + hours}:00?",
        f"From {start}:00 on, {who} has {count} {what} of {length} minutes each and takes {pause} minutes off between one and the next. "
        f"How many minutes before {start + hours}:00 does the last one end?",
    ))  # fmt: skip
    solution = (
        f"The {what} take [[{count} * {length}]] minutes. The [[{count} - 1]] breaks take [[{count - 1} * {pause}]] minutes. "
        f"Together: [[{count * length} + {(count - 1) * pause}]] minutes. From {start}:00 to {start + hours}:00 there are "
        f"[[{hours} * 60]] minutes. "
        f"[[{hours * 60} - {span}]] minutes are left."
    )
    return Problem(question, solution, free)


def average_needed(d: Draw) -> Problem:
    """The score that lifts an average to a goal."""
    who, what = d.name(), d.pick(("math tests", "rounds of golf practice", "spelling tests", "quiz rounds"))
    scores = [d.whole(70, 86) for _ in range(d.whole(3, 4))]
    goal = sum(scores) // len(scores) + d.whole(0, 2)
    n = len(scores)
    listed = ", ".join(map(str, scores[:-1])) + f" and {scores[-1]}"
    question = d.pick(
        (
            f"{who} scored {listed} in {n} {what}. What score in the next one makes the average of all {n + 1} equal to {goal}?",
            f"After {n} {what} with {listed} points, {who} wants an average of {goal} over {n + 1}. How many points are needed in the "
            "last one?",
        )
    )
    added = " + ".join(map(str, scores))
    solution = (
        f"For an average of {goal} the sum must be [[{goal} * {n + 1}]]. The sum so far is [[{added}]]. So the next score must be "
        f"[[{goal * (n + 1)} - {sum(scores)}]]."
    )
    return Problem(question, solution, goal + sum(goal - score for score in scores))


def average_without(d: Draw) -> Problem:
    """The average after one member leaves."""
    group, unit = d.pick((("rowers", "kilograms"), ("hikers' backpacks", "kilograms"), ("parcels", "kilograms"), ("pumpkins", "kilograms")))
    n, mean = d.whole(5, 9), d.whole(20, 80)
    change = d.whole(1, 5)
    gone = mean + change * (n - 1)
    question = d.pick(
        (
            f"The average weight of {n} {group} is {mean} {unit}. One of them, with {gone} {unit}, is taken away. What is the average "
            f"weight of the others in {unit}?",
            f"{n} {group} weigh {mean} {unit} on average. Without the heaviest, which has {gone} {unit}, what is the average of the "
            f"remaining ones, in {unit}?",
        )
    )
    if group == "rowers":
        question = question.replace("which has", "who has").replace("is taken away", "leaves")
    solution = (
        f"Together they weigh [[{n} * {mean}]] {unit}. Without the one there are [[{n * mean} - {gone}]] {unit} left for [[{n} - 1]]. "
        f"The average is [[{n * mean - gone} / {n - 1}]] {unit}."
    )
    return Problem(question, solution, mean - change)


def ratio_share(d: Draw) -> Problem:
    """Sharing in a ratio of three; difference of two shares."""
    one, two, three = d.names(3)
    a, b, c = d.some(range(1, 10), 3)
    unit = d.whole(3, 25)
    total = (a + b + c) * unit
    what = d.pick(("marbles", "trading cards", "gold coins", "stickers", "shells"))
    high, low = (one, two) if a > b else (two, one)
    question = d.pick((
        f"{one}, {two} and {three} share {total} {what} in the ratio {a}:{b}:{c}. How many more {what} does {high} get than {low}?",
        f"{total} {what} are divided between {one}, {two} and {three} so that their shares are as {a} to {b} to {c}. By how many {what} "
        f"is {high}'s share larger than {low}'s?",
    ))  # fmt: skip
    solution = (
        f"There are [[{a} + {b} + {c}]] parts, each of [[{total} / {a + b + c}]] {what}. {one} gets [[{a} * {unit}]] and {two} gets "
        f"[[{b} * {unit}]]. "
        f"The difference is [[{max(a, b) * unit} - {min(a, b) * unit}]]."
    )
    return Problem(question, solution, Fraction(abs(a - b) * total, a + b + c))


def ratio_growth(d: Draw) -> Problem:
    """A ratio gives one group; then both change."""
    place = d.pick(("choir", "sports club", "summer camp", "theater group"))
    a, b = d.some(range(2, 9), 2)
    unit, new, left = d.whole(3, 12), d.whole(2, 15), d.whole(1, 5)
    question = d.pick((
        f"In a {place} the ratio of adults to children is {a}:{b}. There are {a * unit} adults. Then {new} children join and {left} "
        f"adults leave. How many people are in the {place} now?",
        f"A {place} has {a * unit} adults, and for every {a} adults there are {b} children. After {left} adults quit and {new} children "
        "sign up, how many members are there?",
    ))  # fmt: skip
    solution = (
        f"One part is [[{a * unit} / {a}]] people, so there are [[{b} * {unit}]] children. After the change there are "
        f"[[{b * unit} + {new}]] children "
        f"and [[{a * unit} - {left}]] adults, together [[{b * unit + new} + {a * unit - left}]]."
    )
    return Problem(question, solution, (a + b) * unit + new - left)


def leftover_packs(d: Draw) -> Problem:
    """Remainder after packing several batches."""
    who, thing = d.name(), d.pick(("cookies", "tomatoes", "tulip bulbs", "golf balls", "tea lights"))
    trays, each, pack = d.whole(4, 15), d.whole(9, 25), d.whole(6, 16)
    total = trays * each
    packs = total // pack
    question = d.pick(
        (
            f"{who} has {trays} trays with {each} {thing} each and packs them in bags of {pack}. How many {thing} are left when no more "
            "full bag can be made?",
            f"{trays} boxes hold {each} {thing} each. {who} repacks all of them into bags of {pack}. How many {thing} do not fit into a "
            "full bag?",
        )
    )
    solution = (
        f"There are [[{trays} * {each}]] {thing}. {packs} full bags use [[{packs} * {pack}]]. The rest is "
        f"[[{total} - {packs * pack}]], less than a bag of {pack}."
    )
    return Problem(question, solution, trays * each % pack)


def bus_seats(d: Draw) -> Problem:
    """Rounding up, then the empty seats."""
    event = d.pick(("a football match", "a museum", "a concert", "a science fair"))
    groups, size, extra, seats = d.whole(3, 9), d.whole(18, 32), d.whole(4, 15), d.pick((40, 44, 48, 52, 56))
    people = groups * size + extra
    buses = -(-people // seats)
    question = d.pick((
        f"{groups} classes of {size} pupils and {extra} teachers go to {event} in buses with {seats} seats. They order as few buses as "
        "possible. How many seats stay empty?",
        f"A trip to {event} is joined by {extra} adults and {groups} groups of {size} children. Each bus takes {seats} people. With the "
        "smallest possible number of buses, how many seats are free?",
    ))  # fmt: skip
    solution = (
        f"There are [[{groups} * {size} + {extra}]] people. {buses} buses offer [[{buses} * {seats}]] seats, and one bus fewer would not "
        "be enough. "
        f"[[{buses * seats} - {people}]] seats stay empty."
    )
    return Problem(question, solution, -people % seats)


def reading_plan(d: Draw) -> Problem:
    """Pages read at one pace, the rest in a given number of days."""
    who, kind = d.name(), d.pick(("novel", "biography", "travel guide", "crime story"))
    pace, days, later, rest = d.whole(12, 40), d.whole(3, 9), d.whole(15, 50), d.whole(2, 8)
    pages = pace * days + later * rest
    question = d.pick((
        f"A {kind} has {pages} pages. {who} reads {pace} pages a day for {days} days and wants to finish in {rest} more days. How many "
        "pages a day are needed from then on?",
        f"{who} has read {pace} pages of a {kind} on each of {days} days. The {kind} is {pages} pages long and is due back at the library "
        f"in {rest} days. "
        f"How many pages must {who} read per day to finish?",
    ))  # fmt: skip
    solution = (
        f"{who} has read [[{pace} * {days}]] pages. [[{pages} - {pace * days}]] pages are left. That is "
        f"[[{later * rest} / {rest}]] pages a day."
    )
    return Problem(question, solution, later)


def growing_savings(d: Draw) -> Problem:
    """Sum of an arithmetic sequence."""
    who, first, step, days = d.name(), d.whole(2, 12), d.whole(1, 5), d.whole(4, 12, 2)
    what = d.pick(("push-ups", "new words", "laps", "free throws"))
    last = first + step * (days - 1)
    question = d.pick((
        f"{who} does {first} {what} on the first day and {step} more on each following day than on the day before. How many {what} are "
        f"that in {days} days altogether?",
        f"A training plan starts with {first} {what} and adds {step} every day. {who} follows it for {days} days. What is the total "
        f"number of {what}?",
    ))  # fmt: skip
    solution = (
        f"On the last day there are [[{first} + {step} * ({days} - 1)]]. First and last day together have [[{first} + {last}]]. "
        f"There are [[{days} / 2]] such pairs of days. The total is [[{days // 2} * {first + last}]]."
    )
    return Problem(question, solution, sum(first + step * day for day in range(days)))


def heads_and_legs(d: Draw) -> Problem:
    """Two kinds of animals by heads and legs."""
    four, two = d.pick((("rabbits", "hens"), ("goats", "ducks"), ("sheep", "geese"), ("cows", "turkeys")))
    x, y = d.whole(5, 60), d.whole(5, 60)
    heads, legs = x + y, 4 * x + 2 * y
    who = d.name()
    question = d.pick(
        (
            f"{who} keeps {four} and {two}. Together they have {heads} heads and {legs} legs. How many {four} are there?",
            f"On {who}'s farm there are only {four} and {two}: {heads} animals with {legs} legs in all. How many of them are {four}?",
        )
    )
    solution = (
        f"If all were {two}, there would be [[{heads} * 2]] legs. There are [[{legs} - {2 * heads}]] more. Each of the {four} has 2 extra "
        "legs, "
        f"so there are [[{legs - 2 * heads} / 2]] {four}."
    )
    return Problem(question, solution, x)


def round_robin(d: Draw) -> Problem:
    """Everyone plays everyone, some games are already over."""
    game, teams, minutes = d.pick(("chess", "table tennis", "badminton", "darts")), d.whole(5, 14), d.whole(10, 45, 5)
    games = teams * (teams - 1) // 2
    done = d.whole(1, games - 1)
    question = d.pick((
        f"In a {game} tournament {teams} players each play every other player once. {done} games are over. Each game takes {minutes} "
        "minutes and there is one table. "
        f"How many minutes do the remaining games take?",
        f"{teams} players meet for {game}; everyone plays once against everyone else, one game after the other, {minutes} minutes each. "
        f"After {done} games, how many minutes of play are left?",
    ))  # fmt: skip
    question = question.replace(
        "one table", "one board" if game in ("chess", "darts") else "one court" if game == "badminton" else "one table"
    )
    solution = (
        f"Each player has [[{teams} - 1]] opponents, and each game counts for two players, so there are [[{teams} * {teams - 1} / 2]] "
        "games. "
        f"[[{games} - {done}]] games are left. They take [[{games - done} * {minutes}]] minutes."
    )
    return Problem(question, solution, (sum(range(teams)) - done) * minutes)


def vote_lead(d: Draw) -> Problem:
    """Sum and difference of two counts."""
    one, two = d.names(2)
    low, lead, invalid = d.whole(30, 400), d.whole(4, 120), d.whole(2, 30)
    total = 2 * low + lead + invalid
    what = d.pick(("class speaker", "club captain", "mayor of a village", "head of the council"))
    question = d.pick(
        (
            f"{total} votes were cast for {what}. {invalid} were invalid. {one} got {lead} votes more than {two}, the only other "
            f"candidate. How many votes did {one} get?",
            f"{one} and {two} both want to become {what}. {one} wins by {lead} votes. With {total} votes counted, {invalid} of them "
            f"invalid, how many went to {one}?",
        )
    )
    solution = (
        f"There are [[{total} - {invalid}]] valid votes. Without the lead both would have the same number: [[{total - invalid} - {lead}]] "
        "votes in all, "
        f"[[{total - invalid - lead} / 2]] each. {one} got [[{low} + {lead}]] votes."
    )
    return Problem(question, solution, Fraction(total - invalid + lead, 2))


def road_trees(d: Draw) -> Problem:
    """Posts and gaps, on both sides of a road."""
    who, what = d.name(), d.pick(("lamps", "trees", "flag poles", "benches"))
    gap, gaps = d.whole(5, 25), d.whole(8, 40)
    length = gap * gaps
    question = d.pick((
        f"{who} sets up {what} along both sides of a straight road of {length} meters, one every {gap} meters, with one at each end. How "
        f"many {what} are needed?",
        f"A straight avenue is {length} meters long. On each of its two sides {who} places {what} {gap} meters apart, also at the very "
        f"beginning and end. How many {what} are that in all?",
    ))  # fmt: skip
    solution = (
        f"There are [[{length} / {gap}]] gaps on a side, so [[{gaps} + 1]] {what} on a side. Both sides have [[2 * {gaps + 1}]] {what}."
    )
    return Problem(question, solution, 2 * (length // gap) + 2)


def survey_percent(d: Draw) -> Problem:
    """A percentage of a percentage."""
    town, people = d.pick(("Elmford", "Sandby", "Torrin", "Greyhill", "Maple Cove")), d.whole(200, 4000, 200)
    p, q = d.pick((20, 25, 40, 50, 60, 75)), d.pick((10, 20, 30, 40, 50))
    thing, sub = d.pick(
        (("own a bicycle", "ride it to work"), ("have a pet", "have a dog"), ("play a sport", "play tennis"), ("rent a flat", "live alone"))
    )
    question = d.pick(
        (
            f"{town} has {people} inhabitants. {p}% of them {thing}, and {q}% of these {sub}. How many inhabitants {sub}?",
            f"A survey among all {people} people of {town} finds that {p}% {thing}. Among those, {q}% {sub}. How many people are that?",
        )
    )
    first = people * p // 100
    solution = f"[[{people} * {p} / 100]] people {thing}. Of them [[{first} * {q} / 100]] {sub}."
    return Problem(question, solution, Fraction(people * p * q, 10_000))


TEMPLATES = (
    age_sum, age_future, travel_to_school, recipe_scaling, shop_inventory, day_schedule, average_needed, average_without, ratio_share,
    ratio_growth, leftover_packs, bus_seats, reading_plan, growing_savings, heads_and_legs, round_robin, vote_lead, road_trees,
    survey_percent,
)  # fmt: skip
