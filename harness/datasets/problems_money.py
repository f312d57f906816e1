"""Word problems about money: shopping, percent, profit, pay, plans, savings, exchange."""

from __future__ import annotations

from fractions import Fraction

from harness.datasets.arithmetic import Draw, Problem, money, number


def shopping_change(d: Draw) -> Problem:
    """Two kinds of items paid with one note."""
    who, n, m = d.name(), d.whole(2, 9), d.whole(2, 7)
    (one, two), p, q = d.some(("notebooks", "pens", "erasers", "rulers", "stickers", "folders", "markers"), 2), d.price(1, 5), d.price(1, 6)
    total = n * p + m * q
    note = next(v for v in (10, 20, 50, 100, 200) if v > total)
    question = d.pick((
        f"{who} buys {n} {one} at {money(p)} each and {m} {two} at {money(q)} each, and pays with a ${note} bill. How many dollars of "
        f"change does {who} get?",
        f"At a school shop, {one} cost {money(p)} each and {two} cost {money(q)} each. {who} takes {n} {one} and {m} {two}. "
        f"After handing over ${note}, how much change in dollars should {who} receive?",
    ))  # fmt: skip
    solution = (
        f"The {one} cost [[{n} * {number(p)}]] dollars. The {two} cost [[{m} * {number(q)}]] dollars. "
        f"Together that is [[{number(n * p)} + {number(m * q)}]] dollars. The change is [[{note} - {number(total)}]] dollars."
    )
    return Problem(question, solution, note - n * p - m * q)


def discount_then_coupon(d: Draw) -> Problem:
    """A percentage off, then a fixed amount off."""
    who, item = d.name(), d.pick(("jacket", "backpack", "tent", "lamp", "camera bag", "pair of boots"))
    price, percent, coupon = d.whole(40, 200, 20), d.pick((10, 15, 20, 25, 30, 40)), d.whole(3, 12)
    question = d.pick((
        f"A {item} costs ${price}. In a sale it is {percent}% cheaper, and {who} also has a coupon for ${coupon} off the sale price. How "
        f"many dollars does {who} pay?",
        f"{who} wants a {item} priced at ${price}. The shop takes {percent}% off today, and a voucher takes off another ${coupon}. What "
        "is the final price in dollars?",
    ))  # fmt: skip
    off = Fraction(price * percent, 100)
    solution = (
        f"The discount is [[{price} * {percent} / 100]] dollars. The sale price is [[{price} - {number(off)}]] dollars. "
        f"With the coupon {who} pays [[{number(price - off)} - {coupon}]] dollars."
    )
    return Problem(question, solution, Fraction(price * (100 - percent), 100) - coupon)


def tip_and_split(d: Draw) -> Problem:
    """A restaurant bill with a tip, shared equally."""
    who, people, percent = d.name(), d.whole(3, 6), d.pick((10, 15, 20))
    bill = people * d.whole(2, 8) * 20
    question = d.pick((
        f"{who} eats out with {people - 1} friends. The bill is ${bill} and they add a {percent}% tip. If all {people} share the total "
        "equally, how many dollars "
        "does each one pay?",
        f"A dinner for {who} and {people - 1} guests comes to ${bill}. They leave a tip of {percent}% and split everything evenly. What "
        "is each "
        "person's share in dollars?",
    ))  # fmt: skip
    tip = bill * percent // 100
    solution = (
        f"The tip is [[{bill} * {percent} / 100]] dollars. The total is [[{bill} + {tip}]] dollars. Each person pays "
        f"[[{bill + tip} / {people}]] dollars."
    )
    return Problem(question, solution, Fraction(bill * (100 + percent), 100 * people))


def crates_profit(d: Draw) -> Problem:
    """Buying crates, losing some pieces, selling the rest."""
    who, fruit = d.name(), d.pick(("mangoes", "peaches", "melons", "pineapples", "avocados"))
    crates, each, cost, price = d.whole(3, 9), d.whole(12, 24), d.whole(6, 10), d.whole(2, 4)
    bad = d.whole(3, 12)
    question = d.pick((
        f"{who} buys {crates} crates of {fruit} for ${cost} a crate. Each crate holds {each} {fruit}, but {bad} {fruit} in all are "
        "spoiled. "
        f"{who} sells the rest for ${price} each. What is the profit in dollars?",
        f"A stall owner, {who}, pays ${cost} for each of {crates} crates with {each} {fruit} inside. {bad} of the {fruit} cannot be sold; "
        f"the others go for ${price} apiece. "
        f"How many dollars of profit are made?",
    ))  # fmt: skip
    good = crates * each - bad
    solution = (
        f"There are [[{crates} * {each}]] {fruit}. Of these, [[{crates * each} - {bad}]] can be sold. They bring in [[{good} * {price}]] "
        "dollars. "
        f"The crates cost [[{crates} * {cost}]] dollars. The profit is [[{good * price} - {crates * cost}]] dollars."
    )
    return Problem(question, solution, crates * (each * price - cost) - bad * price)


def markup_revenue(d: Draw) -> Problem:
    """A fixed percentage on top of the cost, for several pieces."""
    who, thing = d.name(), d.pick(("candles", "mugs", "scarves", "bowls", "baskets"))
    cost, percent, n = d.whole(4, 30, 2), d.pick((25, 50, 75, 100)), d.whole(6, 40)
    question = d.pick((
        f"{who} makes {thing}. One costs ${cost} to make and is sold for {percent}% more than that. How many dollars does {who} take in "
        f"by selling {n} {thing}?",
        f"Making each of the {thing} costs {who} ${cost}. The selling price adds {percent}% to this cost. What is the income in dollars "
        f"from {n} {thing}?",
    ))  # fmt: skip
    extra = Fraction(cost * percent, 100)
    solution = (
        f"The markup is [[{cost} * {percent} / 100]] dollars. Each piece sells for [[{cost} + {number(extra)}]] dollars. "
        f"Selling {n} brings [[{n} * {number(cost + extra)}]] dollars."
    )
    return Problem(question, solution, n * Fraction(cost * (100 + percent), 100))


def savings_goal(d: Draw) -> Problem:
    """Weeks until a savings goal is reached."""
    who, goal = d.name(), d.pick(("a bicycle", "a guitar", "a telescope", "a skateboard", "a tablet", "a sewing machine"))
    start, earn, spend, weeks = d.whole(10, 60), d.whole(15, 40), d.whole(2, 9), d.whole(4, 18)
    target = start + weeks * (earn - spend)
    question = d.pick((
        f"{who} has ${start} and wants to buy {goal} for ${target}. Every week {who} earns ${earn} and spends ${spend} of it. After how "
        "many weeks is there enough money?",
        f"{goal.capitalize()} costs ${target}. {who} starts with ${start}, earns ${earn} a week and uses ${spend} of that for bus tickets. "
        f"How many weeks does it take to save the full price?",
    ))  # fmt: skip
    solution = (
        f"{who} saves [[{earn} - {spend}]] dollars a week. [[{target} - {start}]] dollars are still missing. That takes "
        f"[[{target - start} / {earn - spend}]] weeks."
    )
    return Problem(question, solution, weeks)


def phone_plan(d: Draw) -> Problem:
    """A monthly fee with included minutes and a price for the rest."""
    who, fee, included, cents = d.name(), d.whole(8, 30), d.whole(50, 200, 10), d.pick((5, 8, 10, 12, 15, 20))
    used = included + d.whole(20, 150, 5)
    question = d.pick((
        f"A phone plan costs ${fee} a month and includes {included} minutes. Every further minute costs {cents} cents. "
        f"{who} talks for {used} minutes in May. How many dollars is the bill?",
        f"{who} pays ${fee} a month for {included} minutes of calls, and {cents} cents for each minute beyond that. "
        f"Last month {who} used {used} minutes. How much was the bill, in dollars?",
    ))  # fmt: skip
    extra = used - included
    solution = (
        f"[[{used} - {included}]] minutes are not included. They cost [[{extra} * {cents}]] cents, which is [[{extra * cents} / 100]] "
        "dollars. "
        f"The bill is [[{fee} + {number(Fraction(extra * cents, 100))}]] dollars."
    )
    return Problem(question, solution, fee + Fraction((used - included) * cents, 100))


def taxi_distance(d: Draw) -> Problem:
    """From a total fare back to the distance."""
    who, base, per_km, km = d.name(), d.whole(3, 9), d.price(1, 4), d.whole(4, 30)
    fare = base + per_km * km
    question = d.pick(
        (
            f"A taxi charges ${base} at the start and {money(per_km)} for each kilometer. {who}'s ride costs {money(fare)}. How many "
            "kilometers long was the ride?",
            f"{who} paid {money(fare)} for a taxi. The driver asks for a fixed ${base} plus {money(per_km)} per kilometer. How many "
            f"kilometers did {who} travel?",
        )
    )
    solution = (
        f"Without the start fee the ride cost [[{number(fare)} - {base}]] dollars. That pays for "
        f"[[{number(fare - base)} / {number(per_km)}]] kilometers."
    )
    return Problem(question, solution, km)


def parking_fee(d: Draw) -> Problem:
    """A dearer first hour, cheaper further hours, several days."""
    who, first, more, hours, days = d.name(), d.whole(3, 8), d.whole(1, 2), d.whole(3, 9), d.whole(2, 6)
    question = d.pick((
        f"A car park takes ${first} for the first hour and ${more} for every further hour. {who} parks for {hours} hours on each of "
        f"{days} days. How many dollars does that cost?",
        f"On {days} days {who} leaves the car in a garage for {hours} hours a day. The first hour costs ${first} a day and each hour "
        f"after it ${more}. What is the total cost in dollars?",
    ))  # fmt: skip
    daily = first + (hours - 1) * more
    solution = (
        f"After the first hour there are [[{hours} - 1]] more hours a day, for [[{hours - 1} * {more}]] dollars. "
        f"One day costs [[{first} + {(hours - 1) * more}]] dollars. {days} days cost [[{days} * {daily}]] dollars."
    )
    return Problem(question, solution, days * (first + (hours - 1) * more))


def overtime_pay(d: Draw) -> Problem:
    """Hours beyond a limit are paid one and a half times."""
    who, job, wage, limit = (
        d.name(),
        d.pick(("warehouse", "bakery", "call center", "garden center")),
        d.whole(12, 30, 2),
        d.pick((35, 38, 40)),
    )
    over = d.whole(2, 12)
    question = d.pick((
        f"{who} works in a {job} for ${wage} an hour. Hours beyond {limit} in a week are paid one and a half times as much. "
        f"How many dollars does {who} earn in a week of {limit + over} hours?",
        f"At a {job} the hourly wage is ${wage} up to {limit} hours a week; overtime pays 1.5 times the wage. What does {who} earn, in "
        f"dollars, for {limit + over} hours in one week?",
    ))  # fmt: skip
    high = Fraction(3 * wage, 2)
    solution = (
        f"The normal hours pay [[{limit} * {wage}]] dollars. There are [[{limit + over} - {limit}]] hours of overtime at [[{wage} * 1.5]] "
        "dollars an hour, "
        f"so overtime pays [[{over} * {number(high)}]] dollars. In all {who} earns [[{limit * wage} + {number(over * high)}]] dollars."
    )
    return Problem(question, solution, Fraction(wage * (2 * limit + 3 * over), 2))


def simple_interest(d: Draw) -> Problem:
    """Simple yearly interest and the final amount."""
    who, amount, rate, years = d.name(), d.whole(200, 3000, 50), d.pick((2, 3, 4, 5, 6)), d.whole(2, 7)
    question = d.pick((
        f"{who} lends ${amount} to a friend at {rate}% simple interest a year. How many dollars does {who} get back in total after "
        f"{years} years?",
        f"A savings bond of ${amount} pays simple interest of {rate}% every year. {who} keeps it for {years} years. What is it worth in "
        "dollars at the end, interest included?",
    ))  # fmt: skip
    yearly = Fraction(amount * rate, 100)
    solution = (
        f"One year brings [[{amount} * {rate} / 100]] dollars. {years} years bring [[{years} * {number(yearly)}]] dollars. "
        f"Together with the start amount that is [[{amount} + {number(years * yearly)}]] dollars."
    )
    return Problem(question, solution, Fraction(amount * (100 + rate * years), 100))


def currency_exchange(d: Draw) -> Problem:
    """Changing money, spending part of it, changing the rest back."""
    who, place = d.name(), d.pick(("Norland", "Vesta", "Caldera", "the Pearl Islands"))
    rate, dollars, day, days = d.whole(4, 20), d.whole(100, 400, 10), d.whole(10, 40), d.whole(2, 6)
    spent = rate * min(day * days, dollars - 10)
    question = d.pick((
        f"In {place} one dollar is worth {rate} crowns. {who} changes ${dollars} into crowns, spends {spent} crowns on a trip and changes "
        "the rest back at the same rate. "
        f"How many dollars does {who} have then?",
        f"{who} travels to {place}, where $1 buys {rate} crowns, and exchanges ${dollars}. The trip costs {spent} crowns. How many "
        "dollars are the remaining crowns worth?",
    ))  # fmt: skip
    solution = (
        f"{who} gets [[{dollars} * {rate}]] crowns. After the trip [[{dollars * rate} - {spent}]] crowns are left. They are worth "
        f"[[{dollars * rate - spent} / {rate}]] dollars."
    )
    return Problem(question, solution, dollars - Fraction(spent, rate))


def ticket_revenue(d: Draw) -> Problem:
    """From the number of tickets and the revenue to the number of adults."""
    place = d.pick(("zoo", "museum", "cinema", "puppet theater", "swimming pool"))
    child = d.whole(3, 9)
    adult, n = child + d.whole(2, 8), d.whole(40, 200)
    adults = d.whole(10, n - 10)
    total = adults * adult + (n - adults) * child
    question = d.pick((
        f"A {place} sells {n} tickets in one morning for ${total} in all. An adult ticket costs ${adult}, a child ticket ${child}. How "
        "many adult tickets were sold?",
        f"Tickets for the {place} are ${adult} for adults and ${child} for children. {n} visitors paid ${total} together. How many of "
        "them were adults?",
    ))  # fmt: skip
    solution = (
        f"If all {n} were children, the income would be [[{n} * {child}]] dollars. The real income is [[{total} - {n * child}]] dollars "
        "higher. "
        f"Each adult adds [[{adult} - {child}]] dollars. So there were [[{total - n * child} / {adult - child}]] adults."
    )
    return Problem(question, solution, adults)


def donation_match(d: Draw) -> Problem:
    """A run with sponsors, matched by a company, minus costs."""
    runners, laps, per_lap, costs = d.whole(8, 40), d.whole(4, 15), d.whole(1, 4), d.whole(20, 60, 5)
    town = d.pick(("an animal shelter", "a hospital", "a library", "a lifeboat station"))
    question = d.pick((
        f"{runners} runners collect money for {town}. Each one runs {laps} laps and gets ${per_lap} a lap. A company doubles the sum, "
        f"and ${costs} are then used to pay for drinks. How many dollars go to the good cause?",
        f"For {town}, {runners} people run {laps} laps each, earning ${per_lap} per lap. A sponsor adds the same amount again. "
        f"After paying ${costs} for the track, how many dollars are left to donate?",
    ))  # fmt: skip
    total = runners * laps
    solution = (
        f"Together they run [[{runners} * {laps}]] laps and earn [[{total} * {per_lap}]] dollars. Doubled, this is "
        f"[[{total * per_lap} * 2]] dollars. "
        f"After the costs [[{2 * total * per_lap} - {costs}]] dollars remain."
    )
    return Problem(question, solution, 2 * runners * laps * per_lap - costs)


def half_then_spent(d: Draw) -> Problem:
    """Working backwards from what is left."""
    who, spent, left = d.name(), d.whole(5, 40), d.whole(3, 60)
    part, times = d.pick((("half", 2), ("two thirds", 3), ("three quarters", 4)))
    first, second = d.some(("shoes", "a concert ticket", "a present", "groceries", "train fares"), 2)
    question = d.pick((
        f"{who} spent {part} of the birthday money on {first} and then ${spent} on {second}. ${left} are left. How many dollars of "
        "birthday money were there?",
        f"After using {part} of some savings for {first} and another ${spent} for {second}, {who} still has ${left}. How many dollars "
        "were the savings at first?",
    ))  # fmt: skip
    solution = (
        f"Before buying {second}, {who} had [[{left} + {spent}]] dollars. That was 1 part of {times}, so at first there were "
        f"[[{left + spent} * {times}]] dollars."
    )
    return Problem(question, solution, times * left + times * spent)


def fuel_cost(d: Draw) -> Problem:
    """Fuel used over a distance and its price."""
    who, per_100, hundreds, price = d.name(), d.whole(4, 12), d.whole(2, 12), d.price(1, 3)
    km = 50 * hundreds
    question = d.pick((
        f"{who}'s van uses {per_100} liters of fuel per 100 kilometers. Fuel costs {money(price)} a liter. How many dollars does the fuel "
        f"for a trip of {km} kilometers cost?",
        f"A trip is {km} kilometers long. {who}'s car needs {per_100} liters for every 100 kilometers, at {money(price)} per liter. What "
        "is the fuel cost in dollars?",
    ))  # fmt: skip
    liters = Fraction(per_100 * km, 100)
    solution = f"The trip needs [[{km} / 100 * {per_100}]] liters. They cost [[{number(liters)} * {number(price)}]] dollars."
    return Problem(question, solution, Fraction(km, 100) * (per_100 * price))


def cheaper_offer(d: Draw) -> Problem:
    """Comparing a club card with single tickets."""
    who, what = d.name(), d.pick(("climbing wall", "swimming hall", "ice rink", "dance studio"))
    visits, single, reduced = d.whole(12, 40), d.whole(7, 14), d.whole(3, 5)
    card = d.whole(10, 20)
    question = d.pick((
        f"A visit to the {what} costs ${single}. With a card for ${card} each visit costs only ${reduced}. "
        f"{who} goes {visits} times a year. How many dollars does the card save {who} in a year?",
        f"{who} visits the {what} {visits} times. Single tickets are ${single}; with a club card, bought once for ${card}, a ticket is "
        f"${reduced}. "
        f"How many dollars less does {who} pay with the card?",
    ))  # fmt: skip
    solution = (
        f"Without the card the visits cost [[{visits} * {single}]] dollars. With it the tickets cost [[{visits} * {reduced}]] dollars, "
        f"together with the card [[{visits * reduced} + {card}]] dollars. The card saves "
        f"[[{visits * single} - {visits * reduced + card}]] dollars."
    )
    return Problem(question, solution, visits * (single - reduced) - card)


def price_change_chain(d: Draw) -> Problem:
    """A price that rises and then falls by a percentage."""
    thing = d.pick(("ticket", "hotel room", "monthly pass", "garden chair", "cooking class"))
    price, up, down = d.whole(40, 400, 20), d.pick((10, 20, 25, 50)), d.pick((10, 20, 30, 50))
    question = d.pick((
        f"The price of a {thing} is ${price}. It goes up by {up}% in spring and then down by {down}% in autumn. What is the price in "
        "dollars after both changes?",
        f"A {thing} that cost ${price} became {up}% more expensive. Later the new price was cut by {down}%. How many dollars does it cost "
        "now?",
    ))  # fmt: skip
    high = Fraction(price * (100 + up), 100)
    drop = high * down / 100
    solution = (
        f"The rise is [[{price} * {up} / 100]] dollars, so the price becomes [[{price} + {number(high - price)}]] dollars. "
        f"The cut is [[{number(high)} * {down} / 100]] dollars. Now it costs [[{number(high)} - {number(drop)}]] dollars."
    )
    return Problem(question, solution, Fraction(price * (100 + up) * (100 - down), 10_000))


TEMPLATES = (
    shopping_change, discount_then_coupon, tip_and_split, crates_profit, markup_revenue, savings_goal, phone_plan, taxi_distance,
    parking_fee, overtime_pay, simple_interest, currency_exchange, ticket_revenue, donation_match, half_then_spent, fuel_cost,
    cheaper_offer, price_change_chain,
)  # fmt: skip
