"""Facts the generated questions are made from: plain data, written for this project.

Answers and distractors were checked for being fair (one right answer, the same kind of word, nothing that a right
answer could be worded as but a digit), never by looking at what a model makes of a single question.
"""

# Continent -> (country, capital). Distractors are other capitals of the same group.
CAPITALS = {
    "Europe": (
        ("France", "Paris"),
        ("Germany", "Berlin"),
        ("Italy", "Rome"),
        ("Spain", "Madrid"),
        ("Portugal", "Lisbon"),
        ("Greece", "Athens"),
        ("Poland", "Warsaw"),
        ("Austria", "Vienna"),
        ("Hungary", "Budapest"),
        ("Norway", "Oslo"),
        ("Sweden", "Stockholm"),
        ("Ireland", "Dublin"),
    ),
    "Asia": (
        ("Japan", "Tokyo"),
        ("China", "Beijing"),
        ("Thailand", "Bangkok"),
        ("Vietnam", "Hanoi"),
        ("South Korea", "Seoul"),
        ("Nepal", "Kathmandu"),
        ("Iran", "Tehran"),
    ),
    "Africa and the Americas": (
        ("Egypt", "Cairo"),
        ("Kenya", "Nairobi"),
        ("Cuba", "Havana"),
        ("Peru", "Lima"),
        ("Chile", "Santiago"),
        ("Canada", "Ottawa"),
    ),
}

# Kind of word -> (word, opposite). Distractors are other opposites of the same kind.
OPPOSITES = {
    "describing": (
        ("hot", "cold"),
        ("big", "small"),
        ("fast", "slow"),
        ("happy", "sad"),
        ("light", "dark"),
        ("open", "closed"),
        ("rich", "poor"),
        ("hard", "soft"),
        ("early", "late"),
        ("full", "empty"),
        ("strong", "weak"),
        ("clean", "dirty"),
        ("wet", "dry"),
        ("young", "old"),
        ("high", "low"),
        ("near", "far"),
        ("noisy", "quiet"),
        ("thick", "thin"),
        ("true", "false"),
        ("cheap", "expensive"),
    ),
    "doing": (
        ("begin", "end"),
        ("win", "lose"),
        ("buy", "sell"),
        ("push", "pull"),
        ("remember", "forget"),
    ),
}

# (singular, plural, wrong forms that some rule of English would give)
PLURALS = (
    ("child", "children", ("childs", "childes", "childrens")),
    ("mouse", "mice", ("mouses", "mices", "meese")),
    ("foot", "feet", ("foots", "feets", "footes")),
    ("tooth", "teeth", ("tooths", "teeths", "toothes")),
    ("goose", "geese", ("gooses", "geeses", "gice")),
    ("man", "men", ("mans", "mens", "manes")),
    ("woman", "women", ("womans", "womens", "womanes")),
    ("leaf", "leaves", ("leafs", "leafes", "leavs")),
    ("knife", "knives", ("knifes", "knifves", "knivs")),
    ("wolf", "wolves", ("wolfs", "wolfes", "wolvs")),
    ("city", "cities", ("citys", "cityes", "citis")),
    ("baby", "babies", ("babys", "babyes", "babis")),
    ("box", "boxes", ("boxs", "boxies", "boxen")),
    ("bus", "buses", ("buss", "busies", "busen")),
    ("church", "churches", ("churchs", "churchies", "churchen")),
    ("dish", "dishes", ("dishs", "dishies", "dishen")),
    ("glass", "glasses", ("glasss", "glassies", "glassen")),
    ("potato", "potatoes", ("potatos", "potaties", "potatoen")),
    ("hero", "heroes", ("heros", "heries", "heroen")),
    ("day", "days", ("daies", "dayes", "dais")),
    ("key", "keys", ("keies", "keyes", "keis")),
    ("dog", "dogs", ("doges", "dogies", "dogen")),
    ("book", "books", ("bookes", "bookies", "beek")),
    ("tree", "trees", ("treeses", "treies", "treen")),
    ("house", "houses", ("houss", "hice", "housen")),
)

NUMBER_WORDS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip

NAMES = ("Anna", "Tom", "Mia", "Ben", "Lucy", "Max", "Emma", "Jack", "Sara", "Paul", "Nina", "Leo")

# (question, answer, wrong answers of the same kind)
SHORT_ANSWERS = (
    ("Which planet is the largest in the solar system?", "Jupiter", ("Mercury", "Mars", "Venus")),
    ("Which planet is closest to the Sun?", "Mercury", ("Saturn", "Neptune", "Jupiter")),
    ("What is the highest mountain in the world?", "Everest", ("Fuji", "Etna", "Kilimanjaro")),
    ("Which ocean is the largest?", "Pacific", ("Arctic", "Indian", "Atlantic")),
    ("Who wrote the play Hamlet?", "Shakespeare", ("Dickens", "Tolstoy", "Cervantes")),
    ("Who painted the Mona Lisa?", "Leonardo", ("Rembrandt", "Monet", "Picasso")),
    ("Who invented the telephone?", "Bell", ("Newton", "Ford", "Curie")),
    ("Who developed the theory of relativity?", "Einstein", ("Darwin", "Pasteur", "Galileo")),
    ("Who developed the theory of natural selection?", "Darwin", ("Einstein", "Edison", "Newton")),
    ("Who was the first president of the United States?", "Washington", ("Lincoln", "Kennedy", "Roosevelt")),
    ("Who was the first person to walk on the Moon?", "Armstrong", ("Gagarin", "Glenn", "Columbus")),
    ("What is the hardest natural material?", "diamond", ("gold", "marble", "quartz")),
    ("Which gas do people need to breathe to stay alive?", "oxygen", ("helium", "hydrogen", "methane")),
    ("Which organ pumps blood through the body?", "heart", ("liver", "lung", "stomach")),
    ("What force pulls objects toward the Earth?", "gravity", ("friction", "magnetism", "pressure")),
    ("What is the currency of Japan?", "yen", ("euro", "dollar", "pound")),
    ("What is the largest animal on Earth?", "whale", ("bear", "shark", "elephant")),
    ("Which animal is the fastest on land?", "cheetah", ("tortoise", "elephant", "gorilla")),
    ("Which country has the Great Wall?", "China", ("Brazil", "Canada", "Italy")),
    ("In which country are the pyramids of Giza?", "Egypt", ("Mexico", "Greece", "India")),
    ("In which city is the Eiffel Tower?", "Paris", ("London", "Berlin", "Madrid")),
    ("In which city is the Statue of Liberty?", "New York", ("Chicago", "Boston", "Miami")),
    ("Which language do people speak in Brazil?", "Portuguese", ("Spanish", "French", "Dutch")),
    ("Which month is the first of the year?", "January", ("March", "June", "December")),
    ("Which season comes after winter?", "spring", ("summer", "autumn", "monsoon")),
)

# (sentence without its last word, the last word, words that do not fit)
SENTENCES = (
    ("The sun rises in the east and sets in the", "west", ("north", "river", "morning")),
    ("A triangle has three", "sides", ("wheels", "legs", "colors")),
    ("Birds build nests and lay", "eggs", ("stones", "leaves", "bricks")),
    ("We hear with our ears and see with our", "eyes", ("hands", "noses", "knees")),
    ("In winter the lake freezes and turns to", "ice", ("sand", "fire", "wood")),
    ("A spider catches insects in its", "web", ("shoe", "nest", "pocket")),
    ("The opposite of black is", "white", ("round", "heavy", "quiet")),
    ("Fish breathe and swim in the", "water", ("desert", "sky", "oven")),
    ("A clock tells us the", "time", ("price", "color", "weather")),
    ("A library is full of", "books", ("horses", "trucks", "clouds")),
    ("You open a locked door with a", "key", ("spoon", "sock", "pillow")),
    ("A baker makes cakes and", "bread", ("shoes", "engines", "glass")),
    ("Bees fly from flower to flower and make", "honey", ("paper", "butter", "wool")),
    ("The Earth goes around the", "sun", ("moon", "city", "clock")),
    ("A pilot flies a", "plane", ("bicycle", "tractor", "ladder")),
    ("There are sixty minutes in one", "hour", ("week", "year", "mile")),
    ("Roses are red and violets are", "blue", ("tall", "loud", "sour")),
    ("When you are tired at night you go to", "bed", ("school", "work", "lunch")),
    ("When it rains we carry an", "umbrella", ("elephant", "orange", "iron")),
    ("Cows eat grass and give us", "milk", ("eggs", "wool", "feathers")),
    ("You cut paper with a pair of", "scissors", ("shoes", "gloves", "glasses")),
    ("A year has twelve", "months", ("hours", "seconds", "meters")),
    ("Monkeys love to eat a yellow", "banana", ("tomato", "cabbage", "shirt")),
    ("Children go to school to", "learn", ("sleep", "drive", "shave")),
    ("The heart pumps", "blood", ("air", "food", "sound")),
)
