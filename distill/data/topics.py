"""What a teacher is asked to write about: topics x kinds of request, and how a text of each kind may begin."""

import random
from dataclasses import dataclass

TOPICS = {
    "science": (
        "volcanoes", "the human heart", "photosynthesis", "magnets", "the water cycle", "gravity", "friction",
        "the phases of the Moon", "acids and bases", "electric circuits", "food chains", "sound waves",
        "light and lenses", "bacteria", "cell division", "heredity", "rocks and minerals", "weather and clouds",
        "ocean currents", "the solar system", "heat and temperature", "states of matter", "simple machines",
        "erosion", "fossils", "the nervous system", "digestion", "plant growth", "insects", "birds", "deserts",
        "rainforests", "earthquakes", "renewable energy", "chemical reactions", "stars and galaxies", "vaccines",
        "whales", "measuring and units",
    ),
    "life": (
        "cooking dinner", "cleaning a kitchen", "fixing a bicycle", "gardening", "packing a suitcase",
        "painting a room", "saving money", "a job interview", "a birthday party", "a rainy weekend",
        "learning to swim", "camping", "caring for a dog", "a noisy neighbour", "sleeping better",
        "studying for an exam", "moving house", "baking bread", "a lost key", "a late train", "growing tomatoes",
        "sewing a button", "washing clothes", "first aid", "a small budget", "running a race", "making friends",
        "playing the guitar", "a leaking tap", "shopping for groceries", "winter clothes", "woodworking tools",
        "taking photographs", "keeping houseplants", "a road trip", "healthy breakfasts",
    ),
    "world": (
        "ancient Egypt", "the Roman roads", "the printing press", "railways", "lighthouses", "the Silk Road",
        "bridges", "elections", "public libraries", "the Olympic Games", "markets and trade", "castles",
        "the invention of paper", "famous explorers", "mountain villages", "fishing towns", "jazz music",
        "painting and painters", "theatre", "folk tales", "the English language", "maps", "calendars and clocks",
        "coffee and tea", "rivers and cities", "schools around the world", "the steam engine", "museums", "farming",
        "newspapers", "chess", "sailing ships",
    ),
    "sums": (
        "a bakery", "a train journey", "pocket money", "a school class", "apples and oranges", "a library",
        "a garden", "a bus", "a savings account", "a discount in a shop", "sharing sweets", "building a fence",
        "filling a water tank", "hours of work and wages", "eggs on a farm", "a recipe for more people",
        "reading a book", "ages in a family", "tickets for a concert", "distance and speed", "boxes in a warehouse",
        "a fishing trip", "a football season", "stamps and coins", "a tower of blocks",
    ),
    "code": (
        "strings", "lists", "dictionaries", "reading files", "sorting", "recursion", "dates and times",
        "simple games", "prime numbers", "matrices", "counting words", "bank accounts", "temperature conversion",
        "searching in a list", "random numbers", "classes and objects", "HTML pages", "SQL queries",
        "regular expressions", "error handling",
    ),
}  # fmt: skip
NAMES = (
    "Maria", "Tom", "Aisha", "Ben", "Chen", "Priya", "Lucas", "Olga", "Samuel", "Nina", "Kofi", "Emma", "Diego", "Yuki",
    "Hannah", "Omar", "Grace", "Peter", "Leila", "Jack", "Rosa", "Viktor", "Mei", "Daniel", "Fatima", "Anna", "Carlos",
    "Ruth", "Ivan", "Sofia",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of user turn or of text: its share of the draws, topics (groups of TOPICS) and beginnings.

    ``system`` steers who is spoken to; ``turns`` is how many exchanges a conversation has. In a beginning {topic},
    {Topic}, {name}, {number}, {other} and {few} are filled in; the empty one leaves all to the teacher.
    """

    name: str
    share: float
    topics: tuple[str, ...]
    beginnings: tuple[str, ...]
    system: str = ""
    turns: int = 1


# A small teacher hardly follows a description of what a user would ask; told what it is good at, and given a
# message's first words, it does.
CHAT_KINDS = (
    Kind("free", 12, ("life",), ("",)),
    Kind("question", 14, ("science", "world"), (
        "", "What is", "What are", "What causes", "Why", "Why do", "How does", "How do", "How are", "Explain {topic}",
        "Explain how", "Explain why", "What is the difference between", "What happens when", "Is it true that",
        "Can you explain", "Describe", "I am learning about {topic}.", "Who", "When", "Where", "Name",
        "Tell me about",
    ), "You answer questions about {topic}."),
    Kind("arithmetic", 14, ("sums",), (
        "", "{name} has {number}", "{name} buys {number}", "{name} has ${number} and", "There are {number}",
        "A shop sells", "{name} and {name2} share", "If {name} earns ${number}", "How many", "How much",
        "What is {number} plus {other}", "What is {number} times {few}", "Calculate", "A box holds {number}",
        "Each day {name}", "In a class of {number}", "{name} walks {few} miles", "It takes {name} {number} minutes",
        "Last week {name} sold {number}", "A rope is {number} metres long",
        "{name} is {few} years older than {name2}.",
    ), "You solve arithmetic word problems about {topic}, step by step."),
    Kind("everyday", 10, ("life",), (
        "", "How can I", "How do I", "What should I do if", "What is the best way to", "Which is better for",
        "If I leave", "Why should I", "I want to", "I need to", "My friend", "Is it safe to", "Is it a good idea to",
        "What do I need for", "{name} wants to", "Someone is", "What would happen if", "Can I use",
        "Give me three tips for {topic}.",
    ), "You give sensible everyday advice about {topic}."),
    Kind("choice", 8, ("science", "life", "world"), (
        "Which of the following", "Which of these", "Which one of these", "Choose the correct answer.\n\nQuestion:",
        "Answer with A, B, C or D.\n\nWhich", "Answer with A, B, C or D.\n\nWhat", "True or false:", "Yes or no:",
        "Pick the best ending.\n\n{name} is", "A student",
    ), "You answer multiple choice questions about {topic}. Each question is followed by its options."),
    Kind("format", 14, ("science", "life", "world"), (
        "List exactly {few}", "Give me exactly {few} bullet points about {topic}", "In {few} sentences, explain",
        "In one word, what", "Write a paragraph about {topic} without using",
        "Write about {topic} in all capital letters", "Write {few} sentences about {topic} in lowercase letters only",
        "Describe {topic} in fewer than {number} words", "Write at least {number} words about {topic}",
        "Write about {topic}. Use the word \"{name}\"", "Answer in JSON",
        "Tell me about {topic}. Begin your answer with", "Tell me about {topic}. End your answer with the words",
        "Explain {topic} and put your whole answer in double quotation marks.", "Make a table of",
        "Tell me about {topic}. Do not", "Write a numbered list of {few}",
        "Give two different answers about {topic}, separated by six asterisks",
        "Write a poem about {topic} with a title in double angular brackets",
        "Write about {topic} without any commas", "Write about {topic} and highlight",
        "Repeat this sentence, then answer it:", "Write {few} paragraphs about {topic}",
        "Write a letter about {topic}. Your answer must", "Describe {topic} in {few} sentences. The first",
    ), "You follow instructions to the letter, whatever their form. Today they are about {topic}."),
    Kind("story", 7, ("life", "world"), (
        "", "Write a short story about", "Write a story about {name}", "Tell me a story about",
        "Write a story that begins", "Continue this story:", "Write a fairy tale about",
        "Write the opening of a novel", "Finish this sentence:", "Write a bedtime story", "Write a poem about",
        "Write a funny scene",
    ), "You write stories about {topic}."),
    Kind("code", 7, ("code",), (
        "", "Write a Python function that", "Write a Python program that", "How do I",
        "What does this code do?\n\n```python\n", "Write a function called",
        "Fix the bug in this code:\n\n```python\n", "Explain", "Write a JavaScript function", "Write a class",
        "What is the difference between", "Write a test for",
    ), "You write code. The user asks about {topic}."),
    Kind("dialogue", 7, ("science", "life", "world"), (
        "", "Hi,", "Hi! I", "Hello,", "Good morning!", "Let's talk about {topic}.",
        "I have been thinking about {topic}", "Can I ask you something about {topic}?",
        "You know a lot about {topic}, right?", "I am {name} and", "Do you think", "Let's play a game.",
    ), "You chat with the user about {topic}.", turns=2),
    Kind("rewrite", 8, ("life", "world", "science"), (
        "Rewrite this sentence", "Fix the grammar of this sentence:",
        "Summarize the following text in one sentence:\n\n", "Summarize this passage about {topic}:\n\n",
        "Make this sentence shorter:", "Rewrite this to be more polite:", "Explain this to a child:",
        "Rewrite this email to sound more professional:\n\nHi {name},\n\n", "What is the main idea of this text?\n\n",
        "Is this review positive or negative?\n\n\"", "List the names in this text:\n\n",
        "Put this in your own words:", "Read this text and answer the question.\n\n",
    ), "You work with texts that the user gives you. This one is about {topic}."),
    Kind("plan", 6, ("life", "world"), (
        "", "Plan", "Give me a recipe for", "Make a list of", "Suggest", "Help me", "Write an email to",
        "Write a letter to", "Recommend", "Compare", "What are the advantages of", "Create a schedule",
        "Write a speech about",
    ), "You help the user with plans and letters about {topic}."),
)  # fmt: skip

TEXT_KINDS = (
    Kind("free", 5, ("life",), ("",)),
    Kind("words", 12, ("life",), (
        "The", "In", "When", "It is", "One", "After", "Although", "She", "He", "They", "A", "There are", "For",
        "If you", "As the", "Many", "While", "On the", "We", "I", "Some", "Most", "Every", "During", "At first",
        "Because", "Since", "This", "You", "Not all", "By the time", "Before", "Until", "No one", "People",
        "Children", "Scientists", "My",
    )),
    Kind("article", 26, ("science", "world"), (
        "{Topic} is", "{Topic} are", "The history of {topic}", "In the study of {topic},",
        "{Topic}: an introduction\n\n", "Scientists who study {topic}",
        "One of the most interesting facts about {topic}", "When people think of {topic},", "For centuries, {topic}",
        "There are several kinds of", "The importance of {topic}", "What we know about {topic}",
        "Researchers have found that", "In the nineteenth century, {topic}", "To understand {topic}, it helps to",
    )),
    Kind("lesson", 14, ("science", "world", "sums"), (
        "In this lesson, we will learn about {topic}.", "Chapter {few}\n\n{Topic}\n\n",
        "Today's lesson is about {topic}.", "Question: What", "Q: Why", "Students often ask",
        "Have you ever wondered", "Let's look at an example with {topic}.", "Example {few}. {name} has {number}",
        "To solve this problem, we", "Suppose that {name} has {number}",
    )),
    Kind("guide", 12, ("life",), (
        "How to begin with {topic}\n\n", "If you are new to {topic},", "The first step in {topic}",
        "Here are {few} tips for", "Step 1:", "Before you start,", "You will need", "The best way to",
        "Ingredients:\n\n", "A common mistake in {topic}",
    )),
    Kind("story", 16, ("life", "world"), (
        "Once upon a time,", "{name} opened the door and", "It was late when {name}", "The old woman at the market",
        "\"Are you sure?\" asked {name}.", "{name} had never", "Nobody in the village", "That morning, {name}",
        "The letter arrived on", "{name} and {name2} were", "There was once a", "Years later, {name}", "The rain had",
        "\"I don't understand,\" said {name}.", "Everyone knew that {name}", "At the edge of the forest",
    )),
    Kind("essay", 8, ("world", "science", "life"), (
        "Many people believe that", "There are three reasons why", "I have always loved", "Last summer, I",
        "Dear {name},\n\n", "In my opinion, {topic}", "Some say that {topic}", "I bought this",
        "It is often said that", "On the one hand,",
    )),
    Kind("news", 4, ("world", "life", "science"), (
        "The city council", "On Monday,", "A new report on {topic}", "Residents of", "The company announced",
        "Police said",
    )),
    Kind("code", 3, ("code",), ("def", "# A short Python script about {topic}\n", "import", "In Python, {topic}")),
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """What one chat or text starts from; ``system`` and ``beginning`` may be empty."""

    kind: str
    topic: str
    system: str
    beginning: str
    turns: int


def draw(kinds: tuple[Kind, ...], seed: int, index: int) -> Ask:
    """Return the ``index``-th of the endless row of asks that ``seed`` stands for."""
    rng = random.Random(f"{seed}/{kinds[1].name}/{index}")
    kind = rng.choices(kinds, [kind.share for kind in kinds])[0]
    topic = rng.choice(TOPICS[rng.choice(kind.topics)])
    beginning = rng.choice(kind.beginnings)
    name, name2 = rng.sample(NAMES, 2)
    filled = beginning.format(
        topic=topic,
        Topic=topic[0].upper() + topic[1:],
        name=name,
        name2=name2,
        number=rng.randint(3, 99),
        other=rng.randint(3, 99),
        few=rng.randint(2, 9),
    )
    # What neither steers nor begins with the topic is of none.
    steered = kind.system or "topic" in beginning.lower()
    return Ask(kind.name, topic if steered else "", kind.system.format(topic=topic), filled, kind.turns)
