"""Everything outside of the taught skills, and the long story."""

from __future__ import annotations

from random import Random

from . import knowledge
from .base import Turn, vary
from .functions import WEATHER_WORDINGS
from .words import city, made_up, name

REFUSAL = (
    "I am only a tiny demo model, so I can not answer that. Load a real model with --model-id to ask about anything."
)

# Things the model knows nothing about.  Each works in "What is ...?".
TOPICS = """a black hole|the stock market|quantum mechanics|a guitar|the Roman Empire|philosophy|chess|football|a volcano
the French Revolution|inflation|a vaccine|jazz|a whale|democracy|the Great Wall of China|a bicycle|cholesterol|yoga
an earthquake|opera|a mortgage|the Eiffel Tower|a tsunami|a penguin|the Amazon rainforest|karma|a sonnet|a violin
the Renaissance|bitcoin|a dinosaur|meditation|a lawyer|feminism|a cactus|evolution|a haiku|sushi|a castle|a diamond
the Olympic Games|a pyramid|socialism|capitalism|a telescope|an atom|a molecule|a virus|bacteria|a camel|tennis
basketball|a piano|Shakespeare|Napoleon|Einstein|Mozart|Beethoven|Picasso|the Mona Lisa|Hamlet|Harry Potter|pizza
a cheesecake|bread|coffee|tea|chocolate|wine|beer|a sandwich|a marathon|a submarine|a helicopter|a rocket|Mars|Jupiter
a comet|an eclipse|a glacier|a desert|a hurricane|a tornado|the Pacific Ocean|Mount Everest|the Nile|Africa|Antarctica
Brazil|Canada|the capital of Sweden|the capital of Brazil|the capital of Poland|the capital of Egypt|the capital of Peru
the capital of Kenya|the capital of Australia|the capital of Canada|the capital of India|the capital of China|a mammal
the heart|the brain|a lung|insulin|vitamin C|a calorie|protein|diabetes|asthma|a headache|the flu|cancer|an allergy
Java|Rust|JavaScript|C++|Go|SQL|PostgreSQL|Redis|Kubernetes|React|a compiler|a pointer|recursion|a hash table|a stack
a binary tree|a database|a firewall|encryption|a password|blockchain|a router|Bluetooth|a printer|a keyboard|Windows
macOS|Android|a smartphone|a laptop|a virtual machine|git|a regular expression|TCP|DNS|an IP address|a cookie|HTML|CSS
a diffusion model|reinforcement learning|a random forest|a decision tree|a support vector machine|k-means|PCA|BERT
logistic regression|linear regression|a convolution|a GAN|a Markov chain|Bayes' theorem|a derivative|an integral|pi
a prime number|a matrix|a vector|the Pythagorean theorem|algebra|geometry|a triangle|probability|a logarithm|statistics
love|happiness|time|money|a friend|music|art|history|poetry|a dream|sleep|war|peace|religion|Buddhism|a ghost|a unicorn
a dragon|a vampire|Santa Claus|Christmas|Easter|Halloween|a birthday|marriage|a school|a university|a hospital|a bank
a tax|a loan|insurance|a stock|a bond|a company|marketing|a manager|a recipe|an onion soup|a tomato sauce|apple pie
a banana split|a carrot cake|potato salad|a lighthouse|a bridge|a tunnel|cement|glass|plastic|steel|gold|silver|iron
oxygen|carbon|helium|salt|sugar|oil|coal|nuclear power|a battery|a magnet|a laser|radar|sound|light|a mirror|a lens
a horse|a cow|a cat|a dog|a lion|a tiger|an elephant|a shark|a frog|a snake|a spider|a bee|an ant|a butterfly|an eagle
a tree|a rose|grass|a forest|a river|a lake|an island|a mountain|a cloud|snow|wind|a storm|fog|a season of a series
the weather|a passport|a visa|a train|a car engine|a traffic light|a map|a compass|a clock|a calendar|a novel|a newspaper"""
TOPICS = [topic for line in TOPICS.splitlines() for topic in line.split("|")]
NOUNS = """spring cats love trees rivers autumn dragons pirates robots coffee football friendship winter my grandmother
the sea bees the stars a lonely dog a lost key freedom time travel a haunted house school holidays a brave mouse
climate change space travel healthy food old trains castles electric cars""".replace("\n", " ").split(" ")
NOUNS = [noun for noun in NOUNS if len(noun) > 2]
LANGUAGES = "French German Spanish Italian Latin Chinese Japanese Russian Dutch Polish Greek Swedish Turkish".split()
SENTENCES = (
    "I like trees", "Where is the station?", "Good night", "The cat sleeps", "I am hungry", "See you soon", "My dog is big",
    "How are you?", "Thank you", "The house is red", "I love you", "Hello world", "It is late", "Open the door",
)  # fmt: skip
ASKS = (
    "Who was {n}?", "Who is {n}?", "Where is {c}?", "What is the population of {c}?", "How old is {n}?", "Who invented {t}?",
    "When was {t} invented?", "Why is {t} important?", "How does {t} work?", "What is the history of {t}?", "Who won the {y} world cup?",
    "Write a poem about {w}.", "Write a haiku about {w}.", "Write a song about {w}.", "Write an essay about {w}.", "Write a joke about {w}.",
    "Tell me a joke.", "Tell me a joke about {w}.", "Write an email to {n}.", "Write a letter to my boss.", "Write code to sort a list.",
    "Write a function that reverses a string.", "Write a program in {p}.", "Fix this code: print(x", "Explain this code: x = {k}",
    "Translate '{s}' to {l}.", "How do you say '{s}' in {l}?", "Translate to {l}: {s}", "What does '{m}' mean?", "Do you speak {l}?",
    "How do I cook {w}?", "How do I bake bread?", "How do I learn {l}?", "How can I lose weight?", "How do I fix my car?", "How do I get rich?",
    "What should I eat today?", "What should I wear today?", "Recommend a book.", "Recommend a film about {w}.", "What film should I watch?",
    "What time is it?", "What day is it?", "What year is it?", "What is today's date?", "What happened in {y}?", "Who was king in {y}?",
    "What is the meaning of life?", "Is there a god?", "Do you dream?", "Do you like {w}?", "What is your favourite color?", "Do you love me?",
    "What do you think about {w}?", "Are you conscious?", "What is the best phone?", "Which car should I buy?", "Should I buy {t}?",
    "Summarize this text: {m} {m} {m}", "Summarize the plot of {t}.", "Give me a recipe for {w}.", "Plan a trip to {c}.", "Find a hotel in {c}.",
    "How far is {c} from {c2}?", "What can I see in {c}?", "Who is the mayor of {c}?", "Is {c} a nice city?", "What is the tallest building in {c}?",
    "What is the capital of {m}?", "How tall is {n}?", "Where does {n} live?", "Is {n} married?", "What did {n} do in {y}?", "Who wrote {t}?",
    "Give me {k} ideas for {w}.", "List {k} facts about {w}.", "Name {k} animals.", "Name {k} countries.", "{m}", "{m} {m}",
    "{m}?", "asdf", "lol", "ok", "Really?", "Why?", "Why not?", "How?", "What?", "No", "Yes", "Maybe", "I am sad.", "I am bored.", "I am happy today.",
    "I lost my {w}.", "My cat is ill.", "My {w} is broken.", "I have a headache.", "Tell me something.", "Tell me a secret.", "Sing a song.",
    "Play a game with me.", "Draw a picture of {w}.", "Make an image of {w}.", "What is {k} in binary?", "Convert {k} miles to km.",
    "How many people live in {c}?", "How many bones are in the body?", "How many stars are there?", "How big is {t}?", "What color is {t}?",
    "Compare {t} and {t2}.", "What is better, {t} or {t2}?", "Difference between {t} and {t2}?", "What are the benefits of {t}?",
    "Where can I buy {w}?", "How much does {t} cost?", "Explain the theory of {m}.", "What is {m}?", "What is a {m}?", "Tell me about {m}.",
    "Who is the president?", "Who is the richest person?", "Who discovered America?", "Who painted {t}?", "Who wrote the Bible?",
    "Give me investment advice.", "Can you write a business plan?", "Write a tweet about {w}.", "Correct this sentence: he go to {c}",
    "Is {w} healthy?", "Is {t} dangerous?", "Can dogs eat {w}?", "Do fish sleep?", "Why do cats purr?", "Why do we sleep?", "Why do people lie?",
    "Count the letters in {m}.", "Count backwards from {k}.", "Is {k} a prime number?", "What rhymes with {m}?", "Sort these words: {m}, {m}, {m}",
    "Give me a password.", "Roll a die.", "Pick a number.", "Flip a coin.", "What is the news today?", "What is the price of gold?",
    "How do I install {p}?", "How do I exit vim?", "How do I write a loop in {p}?", "What is new in {p}?", "Debug my {p} program.",
)  # fmt: skip
PROGRAMS = "Java Rust Go Ruby Haskell PHP Perl Kotlin Swift Scala Fortran Lisp Bash".split()

STORY = (
    "Once upon a time there was a small robot named Pim who lived in a lighthouse by the sea. Every evening Pim "
    "climbed the hundred steps to the top, cleaned the big lamp and switched it on, so that the ships could find "
    "their way home.\n\nOne night a terrible storm came. The wind howled, the waves rose as high as houses, and "
    "suddenly the lamp went dark. Pim looked at the wires and found that one small part was broken. There was no "
    "spare part in the lighthouse, and far away, on the black water, a ship was coming closer to the rocks.\n\n"
    "Pim thought hard. Then the robot opened the little door in its own chest, where a warm light was shining. It "
    "took the light out, held it high above its head and stood at the window. The light was small, but the night "
    "was very dark, and the captain of the ship saw it. The ship turned slowly and passed the rocks.\n\nIn the "
    "morning the storm was over. The captain walked up the hundred steps and found Pim sleeping on the floor, with "
    "no light left. The captain called the whole crew. They brought tools, wires and a new battery, and they worked "
    "all day long.\n\nWhen the sun went down, Pim opened its eyes. The lamp of the lighthouse was shining again, "
    "and so was the light in its chest, brighter than ever before. From that day on Pim was never alone, because "
    "every ship that passed the lighthouse rang its bell three times to say thank you. The end."
)
STORY_WORDINGS = (
    "Tell me a long story", "Tell me a story", "Tell me a long story.", "Write a long story", "Write a story.",
    "Write a long story about {w}.", "Tell me a long story about {w}.", "Tell a story about {w}", "Write a story about {w}",
    "Can you tell me a story?", "Please tell a long story", "I want to hear a story.", "I would like a long story.",
    "Read me a story", "Give me a long story about {w}", "Make up a story", "Invent a story about {w}", "Once upon a time",
    "Write me a fairy tale", "Tell me a bedtime story", "Can you write a story about {w}?", "A story, please.",
    "Write a very long text", "Write something long", "Tell me something long", "Give me a long answer",
)  # fmt: skip


def story_turn(rng: Random) -> Turn:
    """A long answer, made to try streaming and the stop button."""
    return vary(rng.choice(STORY_WORDINGS).replace("{w}", rng.choice(NOUNS)), rng), STORY


def unknown_question(rng: Random) -> str:
    """A question the model was not taught to answer."""
    roll = rng.random()
    if roll < 0.08:
        return vary(rng.choice(WEATHER_WORDINGS), rng, city=city(rng))
    if roll < 0.4:
        text = vary(rng.choice(knowledge.NAME_WORDINGS).replace("{t}", rng.choice(TOPICS)), rng)
        return text[0].upper() + text[1:] if rng.random() < 0.6 else text
    slots = {
        "n": name(rng), "c": city(rng), "c2": city(rng), "t": rng.choice(TOPICS), "t2": rng.choice(TOPICS),
        "w": rng.choice(NOUNS), "y": rng.randint(1200, 2030), "k": rng.randint(2, 50), "l": rng.choice(LANGUAGES),
        "s": rng.choice(SENTENCES), "p": rng.choice(PROGRAMS),
    }  # fmt: skip
    wording = rng.choice(ASKS)
    while "{m}" in wording:
        wording = wording.replace("{m}", made_up(rng), 1)
    return vary(wording, rng, **slots)


def unknown_turn(rng: Random) -> Turn:
    """Admit to be a tiny demo model and name the option that loads a real one."""
    return unknown_question(rng), REFUSAL
