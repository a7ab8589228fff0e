"""Word lists and made-up words for the skills that copy from the prompt."""

from __future__ import annotations

from random import Random

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Isabel Jack Kate Liam Maria Noah Olivia Paul Quinn Rosa Samuel
Tina Ursula Victor Wendy Xavier Yara Zoe Alice Bob Carol Dan Eve Frank Gina Hans Ivan Julia Karl Laura Martin Nina
Oscar Peter Rachel Steve Tom Uma Vera Will Amir Bianca Chen Dmitri Elena Farid Giulia Hiroshi Ingrid Jamal Kofi Leila
Mohammed Ngozi Omar Priya Ravi Sofia Tariq Wei Yuki Zainab Adam Bella Chris Diana Eric Fiona George Hannah Ian Jane
Kevin Lucy Mark Nora Owen Penny Ralph Sarah Tim Violet Walter Abby Brian Cindy Derek Ella Fred Greta Harry Ida James
Kim Leo Mia Nick Otto Pia Ruth Simon Theo Vivian Max Sam Alex Robin Charlie Jordan Taylor Morgan Ashley Lena Jonas
Marta Pedro Luis Carlos Ana Jose Juan Miguel Lucia Pablo Diego Carmen Anders Bjorn Sven Astrid Freya Lars Nils Pierre
Jean Marie Claude Amelie Luc Giovanni Marco Paola Luca Chiara Akira Kenji Naoko Hana Ming Li Mei Jun Raj Anita Deepak
Sanjay Lakshmi Fatima Hassan Ali Yusuf Aisha Mehmet Elif Olga Sergei Natasha Boris Katya Pavel Jan Zofia Marek Eva
Nikos Maya Noor Ines Hugo Arthur Louis Rita Dora Edith Gwen Ivy Joy Kai Lou Ned Opal Pam Rex Sid Ted Una Vic Zack"""
CITIES = """Paris London Berlin Rome Madrid Tokyo Vienna Prague Lisbon Dublin Oslo Helsinki Athens Warsaw Budapest
Brussels Amsterdam Zurich Geneva Munich Hamburg Cologne Milan Naples Venice Barcelona Seville Porto Lyon Nice
Toulouse Boston Chicago Denver Seattle Dallas Houston Miami Atlanta Phoenix Portland Toronto Montreal Vancouver
Ottawa Lima Bogota Santiago Quito Havana Cairo Lagos Nairobi Accra Tunis Dakar Istanbul Ankara Baghdad Tehran Delhi
Mumbai Kolkata Bangalore Beijing Shanghai Shenzhen Seoul Busan Osaka Kyoto Sapporo Hanoi Bangkok Manila Jakarta
Singapore Sydney Melbourne Perth Brisbane Auckland Wellington Moscow Kyiv Minsk Riga Tallinn Sofia Bucharest Belgrade
Zagreb Krakow Gdansk Bergen Malmo Aarhus Leeds Glasgow Cardiff Oxford Cambridge Bristol York Basel Graz Dresden
Leipzig Stuttgart Bonn Bremen Turin Florence Pisa Valencia Granada Bilbao"""
CITY_PHRASES = (
    "New York", "San Francisco", "Los Angeles", "Hong Kong", "Buenos Aires", "Mexico City", "Cape Town", "Tel Aviv",
    "Rio de Janeiro", "San Diego", "Las Vegas", "Kuala Lumpur", "Saint Louis", "New Delhi", "Sao Paulo", "Salt Lake City",
)  # fmt: skip
REGIONS = """France Germany Italy Spain Japan Canada Brazil India China Norway Sweden Poland CA NY TX WA FL UK USA
Austria Greece Portugal Peru Kenya Egypt Turkey Mexico Chile IL MA Oregon Texas Ohio Ireland Scotland"""
END_WORDS = """apple river cheese rocket window garden copper velvet thunder pickle monkey ladder orange planet button
candle dragon forest guitar hammer island jacket kettle lemon marble napkin ocean pepper quartz ribbon saddle tiger
umbrella violin walnut yellow zebra anchor basket cactus donkey engine feather ginger hello igloo jungle kitten lantern
magnet needle onion pillow queen robot silver turtle uncle valley wizard bread cloud dream earth flame grape honey
light music night peace queen smile stone storm sugar table train water wheel world bye done cheers indeed yes amen
always forever today maybe really coffee pizza potato cookie butter chocolate muffin noodle carrot mango"""
END_PHRASES = (
    "Over and out", "The end", "Have a nice day", "Good luck", "Best wishes", "That is all", "Stay safe", "So it is",
    "Yours truly", "End of message", "Take care", "Case closed", "Thank you", "You are welcome", "As you wish",
)  # fmt: skip
EXCLAMATIONS = """Arr Yay Wow Hooray Cheers Bingo Voila Bravo Yeehaw Meow Woof Moo Quack Hurrah Aye Oops Bam Boom
Tada Howdy Amen Peace Roger Aloha Salut Ciao Adios Bye Hey Yo Whoa Yippee Cool Great Super Done Stop Beep Ding"""

_ONSETS = "b br c ch cl d dr f fl g gr h j k kl l m n p pr qu r s sh st t tr v w y z th sk".split()
_VOWELS = "a e i o u ai ea ee io ou ia".split()
_CODAS = ["", "", "", "n", "r", "s", "l", "m", "t", "nd", "x", "ck", "rn", "th"]


def made_up(rng: Random, syllables: tuple[int, int] = (2, 3)) -> str:
    """A pronounceable lower-case word that means nothing."""
    count = rng.randint(*syllables)
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def name(rng: Random) -> str:
    """A given name or a made-up one; made-up names teach copying instead of a list."""
    roll = rng.random()
    if roll < 0.45:
        return rng.choice(NAMES.split())
    if roll < 0.55:
        return f"{rng.choice(NAMES.split())} {made_up(rng).capitalize()}"
    word = made_up(rng, (1, 3))
    return word if roll > 0.95 else word.capitalize()


def city(rng: Random) -> str:
    """A city, perhaps followed by its region, or a made-up one."""
    roll = rng.random()
    if roll < 0.45:
        place = rng.choice(CITIES.split())
    elif roll < 0.55:
        place = rng.choice(CITY_PHRASES)
    else:
        place = made_up(rng).capitalize()
        if rng.random() < 0.15:
            place = f"{rng.choice(('New', 'San', 'Saint', 'Port', 'Bad', 'Los', 'El', 'North'))} {place}"
    roll = rng.random()
    if roll < 0.12:
        return f"{place}, {rng.choice(REGIONS.split())}"
    return place.lower() if roll > 0.9 else place


def ending(rng: Random) -> str:
    """A word or short phrase that a system prompt may ask for at the end of each answer."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(END_WORDS.split())
    if roll < 0.4:
        return rng.choice(END_WORDS.split()).upper()
    if roll < 0.55:
        return made_up(rng)
    if roll < 0.7:
        return made_up(rng, (1, 3)).capitalize() + rng.choice("!!!.")
    if roll < 0.85:
        return rng.choice(EXCLAMATIONS.split()) + rng.choice(("!", "!", "!", "", "."))
    if roll < 0.93:
        return rng.choice(END_PHRASES) + rng.choice(("", "!", "."))
    return f"{rng.choice(END_WORDS.split())} {rng.choice(END_WORDS.split())}"
