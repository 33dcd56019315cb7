"""What a film is about, as one drawable concept: from the words of its title, else from its genres."""

import re
import unicodedata
from collections.abc import Sequence

from generator.training.datasets.icons import Concept
from generator.training.datasets.movies import Movie
from generator.training.datasets.splits import stable_hash

# Words whose picture emojibase's labels do not give, or give wrongly. An empty slug: no picture for this word.
TITLE_WORDS: dict[str, str] = {
    word: slug
    for slug, words in {
        "airplane": "flight airplane plane passenger air",
        "alien": "alien aliens arrival species contact extraterrestrial martian xenon independence",
        "angry-face-with-horns": "devil evil satan demon hell",
        "ant": "ants bugs",
        "baby": "baby babies babysitter",
        "baby-angel": "angel angels heaven michael",
        "ballot-box-with-ballot": "candidate election campaign vote",
        "balance-scale": "justice trial law lawyer jury guilty innocent",
        "bat": "batman",
        "bed": "sleep sleeper sleepers bed",
        "bird": "crow birdcage mockingbird condor sparrow feather",
        "bouquet": "flower flowers garden bloom",
        "bow-and-arrow": "robin archer arrow",
        "boxing-glove": "rocky raging boxer fight champ fighter boxing",
        "broken-heart": "divorce heartbreak breaking betrayal unfaithful ex",
        "bullet-train": "express",
        "camera-with-flash": "paparazzi photo picture pictures",
        "candle": "candle candles",
        "castle": "castle kingdom camelot knight merlin fortress",
        "chains": "prisoner prison shawshank jail escape chain chains convict con slave",
        "cherry-blossom": "spring",
        "christmas-tree": "christmas holiday holidays miracle",
        "circus-tent": "circus",
        "cityscape-at-dusk": "manhattan city chicago philadelphia vegas",
        "classical-building": "museum caesar spartacus rome roman",
        "clown-face": "clown clowns fool stupid dumb dumber crazy mad",
        "coffin": "funeral burial bury grave graveyard buried",
        "cooking": "breakfast",
        "compass": "",
        "cowboy-hat-face": "cowboy cowboys western texas wyatt tombstone maverick gunmen magnificent deadwood",
        "crossed-swords": "braveheart duel rob musketeers highlander conan sword warrior conqueror barbarian",
        "crown": "king kings royal throne henry richard",
        "cloud-with-lightning": "storm thunder lightning hurricane",
        "dagger": "murder kill killer killers killing killings assassin assassins dagger psycho ripper blade macbeth natural",
        "desert-island": "island crusoe",
        "detective": "detective sherlock spy agent mystery clue pi private eye bond impossible",
        "desert": "desert sahara arabia sheltering",
        "dizzy": "vertigo",
        "door": "door doors closet",
        "dove": "peace",
        "fire": "fire heat burning burn inferno firestorm backdraft flame flames hot ablaze",
        "fireworks": "firecracker",
        "foggy": "fog mist",
        "footprints": "footsteps chase hunted walking",
        "fork-and-knife-with-plate": "dinner eat cook thief",
        "film-projector": "cinema hollywood movie movies film paradiso",
        "four-leaf-clover": "luck lucky",
        "framed-picture": "portrait painter artist mona",
        "full-moon": "moon moonlight",
        "game-die": "game games gambler dice",
        "ghost": "ghost ghosts ghostbusters haunted haunting spirit spirits phantom frighteners casper poltergeist",
        "glasses": "blind sight",
        "graduation-cap": "college university graduate student graduation",
        "globe-showing-americas": "world earth",
        "hospital": "hospital kingdom. doctor patient",
        "hourglass-not-done": "time past future yesterday days remains",
        "house-with-garden": "house home houses brady residence",
        "jack-o-lantern": "halloween hallow",
        "key": "secret secrets secretary",
        "kiss-mark": "kiss kissed kissing kisses lips",
        "kitchen-knife": "scream slasher butcher chef",
        "love-letter": "letter letters postino postman valentine",
        "man-astronaut": "apollo astronaut gravity",
        "man-dancing": "saturday disco",
        "man-judge": "judge judgment judgement",
        "man-teacher": "teacher professor holland",
        "man-surfing": "surf surfer",
        "mask": "",
        "military-medal": "war wars soldier soldiers army battle platoon patton glory honor hero heroes courage regiment",
        "milky-way": "galaxy universe cosmos odyssey stargate",
        "money-bag": "money rich million millionaire bank heist robbery wealth",
        "money-with-wings": "wall",
        "musical-notes": "song songs music melody serenade lullaby opus concert symphony",
        "musical-keyboard": "piano pianist keys",
        "newspaper": "paper news quiz",
        "night-with-stars": "night nights midnight nightwatch evening",
        "ogre": "beast monster monsters creature",
        "pig-face": "babe",
        "pirate": "",
        "police-car-light": "cop cops police copycat heat.",
        "police-officer": "sheriff officer",
        "princess": "princess queen cinderella lady bride elizabeth emma",
        "prince": "prince",
        "rabbit-face": "harvey rabbit",
        "racing-car": "speed crash race racing",
        "red-heart": "love lover lovers loved loving heart hearts romance passion amore",
        "ring": "wedding marriage married marry engaged engagement muriel's proposal",
        "robot": "robot robocop terminator cyborg android machine mechanical droid robots transformers",
        "rocket": "space rocket trek starship mars orbit",
        "rose": "rose roses romantic",
        "sailboat": "sail wind voyage",
        "scissors": "scissorhands haircut barber",
        "screwdriver": "",
        "see-no-evil-monkey": "monkeys",
        "school": "school high academy schoolhouse clueless",
        "shark": "jaws shark sharks",
        "ship": "titanic boat boot ship submarine potemkin ferry poseidon",
        "skull": "dead death die dying deadly skull body bodies corpse mortal fatal kill.",
        "snowflake": "snow ice winter cold fargo frozen frost snows",
        "spider": "spider arachnophobia tarantula",
        "stadium": "stadium",
        "star": "star stars starry",
        "steaming-bowl": "soup tampopo",
        "sun": "sun sunshine summer heatwave",
        "sunset": "sunset dusk twilight",
        "sunrise": "sunrise dawn morning",
        "syringe": "trainspotting drugs drug addiction",
        "taxi": "taxi cab",
        "tent": "camp",
        "top-hat": "gentleman gentlemen oscar wilde chaplin",
        "tornado": "twister tornado wizard oz",
        "tractor": "farm",
        "trident-emblem": "poseidon.",
        "trophy": "champions champion winner",
        "umbrella-with-rain-drops": "rain singin umbrellas poppins",
        "volcano": "volcano dante's dante",
        "dollar-banknote": "dollar dollars wall",
        "water-wave": "sea ocean water waterworld wave waves river deep blue. abyss lake",
        "whale": "willy whale",
        "wolf": "wolf wolves werewolf howling",
        "deciduous-tree": "tree trees forest woods jungle",
        "person-fencing": "zorro musketeer",
        "baseball": "baseball",
        "basketball": "hoop basketball",
        "american-football": "football",
        "ice-hockey": "ducks mighty hockey",
        "flag-in-hole": "golf gilmore tin caddyshack",
        "elephant": "dumbo elephant",
        "deer": "bambi deer",
        "dog-face": "dog dogs beethoven lassie benji dalmatians hound",
        "fox": "fox hound.",
        "mouse-face": "mouse mice",
        "lion": "lion simba",
        "gorilla": "congo kong apes ape",
        "crocodile": "crocodile alligator",
        "dragon": "dragon dragonheart dragons",
        "egg": "egg",
        "teddy-bear": "",
        "joystick": "toy toys game.",
        "violin": "violin shine amadeus immortal",
        "movie-camera": "lies videotape director",
        "videocassette": "video",
        "magnet": "",
        "guitar": "rock desperado blues mariachi guitar selena band",
        "microphone": "singer spinal sing voice voices",
        "wine-glass": "wine bacchus",
        "cocktail-glass": "cocktail casablanca drunk leaving",
        "beer-mug": "beer bar brew swingers",
        "hot-beverage": "coffee tea",
        "cigarette": "smoke smoking cigarette",
        "oil-drum": "oil",
        "telephone": "phone call cable telephone",
        "laptop": "net hackers matrix wargames computer internet virtuosity",
        "television": "tv television network channel truman",
        "sleeping-face": "dream dreams dreaming asleep",
        "crystal-ball": "witch witches craft magic magician spell prophecy oracle wizards fortune",
        "joker": "poker card cards casino joker",
        "slot-machine": "vegas.",
        "mirror": "",
        "toilet": "toilet",
        "locked": "lock locked panic",
        "bomb": "bomb explosive strangelove blown arlington speed. nuclear",
        "collision": "armageddon destruction blast deep.",
        "comet": "comet meteor asteroid",
        "radioactive": "chernobyl atomic reactor silkwood",
        "biohazard": "outbreak virus andromeda",
        "dna": "",
        "alembic": "experiment alchemist flubber nutty frankenstein chemical moreau jekyll",
        "speaking-head": "talk talks liar speech",
        "locomotive": "train railway",
        "anchor": "navy crimson captain admiral sailor",
        "helicopter": "broken. helicopter apocalypse",
        "bicycle": "bicycle thief.",
        "automobile": "drive car driver road cars driving herbie",
        "motorcycle": "easy rider motorcycle",
        "mountain": "mountain hill alps everest kilimanjaro brokeback",
        "cheese-wedge": "cheese wallace gromit grommit",
        "peach": "peach",
        "pizza": "pizza mystic",
        "chocolate-bar": "chocolate wonka",
        "spouting-whale": "moby",
        "pill": "pill fever sick",
        "drum": "drum",
        "saxophone": "jazz bird.",
        "santa-claus": "santa claus clause",
        "white-flag": "surrender",
        "wheelchair-symbol": "",
        "bust-in-silhouette": "shadow shadows stranger strangers invisible suspects",
        "eye": "eye eyes watch. blink",
        "brain": "",
        "high-heeled-shoe": "heels shoe priscilla showgirls striptease",
        "lipstick": "model pretty beautiful wong beauty",
        "dress": "dress wore",
        "womans-hat": "sense emma. wings",
        "woman-dancing": "dance dancing dancer strictly ballroom tango salsa",
        "ice-skate": "skate cutting",
        "tropical-drink": "vacation tropical weekend",
        "beach-with-umbrella": "beach",
        "palm-tree": "florida malibu tahiti hawaii",
        "statue-of-liberty": "york america american liberty immigrant",
        "tokyo-tower": "tokyo",
        "mount-fuji": "japan japanese",
        "japanese-castle": "samurai ran ninja shogun",
        "martial-arts-uniform": "karate kickboxer judo dojo",
        "baguette-bread": "french france paris",
        "carousel-horse": "carousel",
        "hundred-points": "",
        "books": "book books story tale tales stories literature",
        "open-book": "diary journal basketball. journals",
        "black-nib": "poet poetry writer quills pen write",
        "scroll": "schindler's scroll",
        "latin-cross": "priest christ church. god gospel saint exorcist nun omen temptation sin sins prophet",
        "church": "church cathedral notre",
        "menorah": "shalom",
        "om": "buddha karma",
        "wheel-of-dharma": "tibet kundun",
        "place-of-worship": "temple",
        "seedling": "grass seed root growing",
        "sunflower": "sunflower",
        "gem-stone": "diamond diamonds gem jewel pearl treasure jewels stone",
        "1st-place-medal": "gold golden goldeneye goldfinger first",
        "person-swimming": "swim swimming pool",
        "person-running": "run running runner fugitive",
        "speedboat": "miami cruise",
        "necktie": "business office firm executive company boss wolf. secretary. chairman suit",
        "factory": "factory metropolis",
        "house": "homeless",
        "clapper-board": "player shorty stunt ed",
        "fish": "wanda fish",
        "person-rowing-boat": "mohicans wild. deliverance",
        "penguin": "penguin",
        "lollipop": "lolita candyman candy",
        "boy": "boy boys son sons sandlot",
        "girl": "girl girls daughter daughters sister sisters matilda",
        "woman": "woman women wife mother mother's mommie mom",
        "old-man": "grumpy grandfather old",
        "old-woman": "daisy grandmother ma",
        "cat-face": "cat cats aristocats",
        "black-cat": "",
        "cactus": "arizona mexico sierra madre",
        "jeans": "denim rebel",
        "ticket": "ticket lotto happen",
        "railway-track": "tracks stand",
        "t-rex": "",
        "lizard": "jurassic dinosaur dinosaurs godzilla lost.",
        "thinking-face": "maybe question think",
        "bell": "bell bells tolls",
        "hook": "",
        "skull-and-crossbones": "pirate pirates cutthroat hook poison arsenic",
        "syringes": "",
        "package": "box package chinese.",
        "fallen-leaf": "fall autumn legends",
        "leaf-fluttering-in-wind": "gone",
        "chess-pawn": "fischer",
        "leopard": "leopard tigrero",
    }.items()
    for word in words.split()
}

# Words that name a picture which would mislead: idioms, grammar, emojibase's looser tags.
STOP_WORDS = frozenset(
    """
    a all am an and any are as at back be been best better big black blue bright but by can clear cool cut day de did do
    don don't down end eye. face false fast first for four free from full get good great green had half hard has have he
    her here him his hold how i id if ii iii in into is it its just know la last le left less let life like link little
    long lost low make man many mark me medium men middle mind more mr mrs much my name new next no not now o of off oh
    ok old on one only open or other our out over own p part person place play point pop post power pure ready real red
    right round sad say second see set she shot show side sign simple single so some speed stay still stop straight sure
    take ten than that the their them then there they thing things this three to too top touch true turn two ultimate
    under until up us very vs was wasn't way we well what when where which white who why will wish with within without
    word work yes you young your zero orange silver brown purple pink yellow hands hand number
    """.split()
)

GENRE_POOLS: dict[str, tuple[str, ...]] = {
    genre: tuple(slugs.split())
    for genre, slugs in {
        "Action": "collision bomb racing-car helicopter fire motorcycle oncoming-fist boxing-glove police-car-light "
        "speedboat crossed-swords small-airplane high-voltage person-running",
        "Adventure": "world-map mountain camping desert-island sailboat canoe snow-capped-mountain backpack volcano "
        "palm-tree elephant old-key gem-stone tent",
        "Animation": "rainbow balloon artist-palette unicorn castle mouse-face penguin butterfly lion dolphin rabbit-face",
        "Children's": "balloon lollipop rabbit-face baby-chick carousel-horse ferris-wheel bear puppy monkey-face "
        "panda dog-face kick-scooter soft-ice-cream frog wrapped-gift hamster koala",
        "Comedy": "clown-face face-with-tears-of-joy banana party-popper pizza rolling-on-the-floor-laughing popcorn "
        "winking-face-with-tongue hot-dog performing-arts doughnut chicken grinning-squinting-face t-shirt confetti-ball "
        "hamburger smiling-face-with-sunglasses toilet cow-face tropical-drink bathtub see-no-evil-monkey nerd-face",
        "Crime": "money-bag police-car detective key cigarette locked chains footprints taxi police-officer "
        "magnifying-glass-tilted-left telephone-receiver briefcase",
        "Documentary": "movie-camera newspaper globe-showing-americas studio-microphone camera video-camera television "
        "microscope telescope film-frames",
        "Drama": "performing-arts crying-face house umbrella-with-rain-drops candle handshake wilted-flower bridge-at-night "
        "fallen-leaf open-book couch-and-lamp hourglass-not-done cloud-with-rain pensive-face anchor envelope "
        "deciduous-tree framed-picture railway-track mantelpiece-clock sunrise-over-mountains train violin fountain-pen "
        "wine-glass old-man busts-in-silhouette dove sunset glasses bicycle night-with-stars folded-hands hospital",
        "Fantasy": "unicorn dragon crystal-ball castle sparkles dragon-face shooting-star princess rainbow",
        "Film-Noir": "detective cigarette umbrella-with-rain-drops telephone night-with-stars bust-in-silhouette "
        "tumbler-glass magnifying-glass-tilted-right woman-dancing foggy",
        "Horror": "ghost skull spider bat coffin spider-web jack-o-lantern derelict-house angry-face-with-horns "
        "face-screaming-in-fear goblin ogre kitchen-knife owl full-moon scorpion",
        "Musical": "musical-notes microphone saxophone violin trumpet guitar musical-keyboard drum woman-dancing "
        "musical-score radio",
        "Mystery": "magnifying-glass-tilted-left detective footprints old-key hole candle door foggy bust-in-silhouette "
        "mantelpiece-clock",
        "Romance": "red-heart rose heart-with-arrow bouquet kiss-mark love-letter ring two-hearts wine-glass "
        "revolving-hearts smiling-face-with-heart-eyes tulip candle crescent-moon sparkling-heart clinking-glasses",
        "Sci-Fi": "rocket alien robot satellite alien-monster milky-way comet telescope satellite-antenna man-astronaut "
        "atom-symbol full-moon-face woman-astronaut radioactive",
        "Thriller": "eye dagger bomb footprints alarm-clock hole locked bust-in-silhouette telephone-receiver "
        "high-voltage fearful-face warning stopwatch spider-web flashlight",
        "War": "military-medal crossed-swords helicopter bomb shield dove rescue-workers-helmet crossed-flags collision "
        "small-airplane",
        "Western": "cowboy-hat-face horse-face cactus desert horse locomotive wolf eagle sheaf-of-rice",
        "": "clapper-board film-projector popcorn ticket cinema film-frames",
    }.items()
}

# The most telling genre first: "Drama Western" is a western, "Comedy Horror" is a horror film.
GENRES_BY_WEIGHT = (
    "Western Sci-Fi Film-Noir Horror Musical War Fantasy Animation Documentary Mystery Children's Crime Romance Adventure "
    "Thriller Action Comedy Drama"
).split()

_FILLER = frozenset("face with symbol sign button and of the in on a s".split())
_GROUP_RANK = (
    "animals-nature",
    "objects",
    "travel-places",
    "food-drink",
    "activities",
    "people-body",
    "smileys-emotion",
)


def words_of(text: str) -> list[str]:
    """Lower-case words without accents; apostrophes stay inside."""
    plain = unicodedata.normalize("NFKD", text.replace("’", "'")).encode("ascii", "ignore").decode().lower()
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)*", plain)


def main_genre(movie: Movie) -> str:
    """The genre that says most about the film, or "" when it has none."""
    return next((genre for genre in GENRES_BY_WEIGHT if genre in movie.genres), "")


class ConceptFinder:
    """Chooses one concept for a film; the same film always has the same one."""

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self._drawn = {concept.slug for concept in concepts}
        self._by_word: dict[str, str] = {}
        ranked = [concept for concept in concepts if concept.group in _GROUP_RANK]
        ranked.sort(key=lambda concept: (len(words_of(concept.label)), _GROUP_RANK.index(concept.group)))
        for concept in ranked:
            words = [word for word in words_of(concept.label) if word not in _FILLER]
            # Only a label's whole content may stand for a word: "police car" is not what "car" looks like.
            if len(words) == 1 and words[0] not in STOP_WORDS:
                self._by_word.setdefault(words[0], concept.slug)
        self._by_word.update({word: slug for word, slug in TITLE_WORDS.items() if slug in self._drawn})
        self._phrases = {
            tuple(words_of(concept.label)): concept.slug for concept in ranked if len(words_of(concept.label)) > 1
        }

    def from_title(self, title: str) -> str | None:
        """Slug of the concept that the title names, the longest phrase first, then the last word that names one."""
        words = words_of(title)
        for length in (4, 3, 2):
            for start in range(len(words) - length + 1):
                if slug := self._phrases.get(tuple(words[start : start + length])):
                    return slug
        found = [slug for word in words if (slug := self._word(word))]
        return found[-1] if found else None

    def for_movie(self, movie: Movie) -> tuple[str, str]:
        """(slug, "title" or "genre"): where the concept comes from. Genre pools are walked by a hash of the item id."""
        if slug := self.from_title(movie.title):
            return slug, "title"
        pool = [slug for slug in GENRE_POOLS[main_genre(movie)] if slug in self._drawn]
        return pool[stable_hash("pool", movie.item_id) % len(pool)], "genre"

    def _word(self, word: str) -> str | None:
        forms = [word, word.removesuffix("'s")]
        if len(word) > 3 and word.endswith("s"):
            forms += [word[:-1], *([word[:-2]] if word.endswith("es") else [])]
            forms += [word[:-3] + "y"] if word.endswith("ies") else []
        for form in forms:
            if form not in STOP_WORDS and (slug := self._by_word.get(form)):
                return slug
        return None
