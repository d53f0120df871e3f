"""Few-shot patterns: sentences with arbitrary labels, one label for each class of words."""

import itertools

from benchmarks.selection.examples import Piece, Prompt, Setting

_CLASSES = (
    (
        "horse dog cat lion tiger rabbit cow sheep wolf bear monkey elephant mouse goat pig",
        "apple banana cherry grape lemon mango peach pear plum melon fig lime kiwi papaya apricot",
        "car truck bus train bicycle airplane ship boat van tram taxi scooter motorcycle helicopter tractor",
        "shirt hat coat shoe sock glove scarf dress skirt belt sweater boot tie vest suit",
    ),
    (
        "hammer saw drill wrench shovel rake axe chisel screwdriver file pliers ladder knife scissors spade",
        "guitar piano violin flute drum trumpet harp cello clarinet organ banjo trombone saxophone horn lute",
        "doctor teacher farmer lawyer nurse baker pilot judge carpenter engineer painter tailor dentist soldier clerk",
        "potato carrot onion tomato cabbage spinach lettuce celery pumpkin bean pea turnip radish broccoli garlic",
    ),
)
_LABELS = (("red", "blue", "green", "white"), ("north", "south", "east", "west"))
_FRAMES = """
I saw the {} yesterday.|We talked about the {} at home.|She asked me about the {} again.
He forgot the {} this morning.|They found the {} near the road.|My friend drew the {} for us.
Nobody noticed the {} at first.|The story begins with the {} there.|You will like the {} very much.
I dreamed of the {} last night.|We waited for the {} all day.|There is a picture of the {} here.
He wrote a poem about the {} once.|They paid for the {} in cash.|The child pointed at the {} twice.
She remembers the {} very well.
"""


def fewshot(setting: Setting) -> Prompt:
    """The label of a sentence whose word has no example of its own: others of its class have."""
    random = setting.random
    labels = random.sample(_LABELS[setting.held_out], 4)
    items = [(word, label) for words, label in zip(_CLASSES[setting.held_out], labels, strict=True) for word in words.split()]
    frames = [frame for line in _FRAMES.split("\n") for frame in line.split("|") if frame]
    asked, label = items.pop(random.randrange(len(items)))
    pairs = list(itertools.product(frames, items))
    random.shuffle(pairs)
    instruction = "Label the last sentence like the others."
    question = random.choice(frames).format(asked)
    room = setting.room(instruction, question)
    lines = [instruction]
    for frame, (word, its_label) in pairs:
        line = f"{frame.format(word)} => {its_label}"
        room -= setting.count("\n" + line)
        if room < 0:
            break
        lines.append(line)
    return Prompt("\n".join(lines), question, [Piece(f"{question} =>"), Piece(f" {label}", judged=True)], [], between="\n")
