"""The questions of the test, in order: together, again, one at a time, among bad ones, sampled."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from importlib.util import find_spec

from vlmbatch.core import Completion, Constraint, Conversation, Pixels, Question
from vlmbatch.engine import Engine
from vlmbatch.errors import DecodeError
from vlmbatch.read.pictures.decode import load_image
from vlmbatch.selftest.asking import Asked, Round, Say, ask
from vlmbatch.selftest.scenes import Scene, broken_jpeg, strip

MAX_NEW_TOKENS = 24
"""Enough for the longest known answer; a published model on a CPU would take minutes for more."""
TOP_TOKENS = 8
"""Tokens beside each token of the reference: one that differs is looked for among them."""
TEMPERATURE = 2.0
"""The demo model is so sure of its answers that a lower one samples the same words."""
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
MAX_PIXELS = 10**8
CONSTRAINT = Constraint("regex", "[a-z]{20}")
"""A constraint whose answers are long enough for decode steps to be recorded."""
TOO_MANY_WORDS = 20_000
"""Words of a question that is longer than the context of these models."""


@dataclasses.dataclass
class Sampling:
    """Sampled answers to one question, one for each seed.

    Attributes:
        first, second: All seeds together, and the same again.
        alone: The first seed in a request of its own.
    """

    first: list[Completion]
    second: list[Completion]
    alone: Completion


@dataclasses.dataclass
class Trial:
    """All answers of the engine under test.

    Attributes:
        scenes: The scenes, in the order of the rounds.
        together: All scenes at once, each with all of its questions, with log-probabilities.
        again: The same without log-probabilities; the engine is warm now.
        alone: The first question about each scene, each in a run of its own.
        separate: Each question about the scene with most questions, in a request of its own.
        small: Places of the scenes of one tile.
        beside_bad: Answers about these, asked at once among bad requests.
        bad: Answers to the bad requests, which no engine can answer well.
        bad_file: The error of a damaged picture file; None if it was read without one.
        sampling: Sampled answers.
        stopped: The answer to a question with a stop string.
        stop: That string; empty if no answer was long enough to have one.
        constrained: Answers about the small scenes, every second of which is constrained; None if
            the engine takes no constraints.
        rounds: All runs.
    """

    scenes: list[Scene]
    together: Round
    again: Round
    alone: list[Round]
    separate: Round
    small: list[int]
    beside_bad: list[list[Completion]]
    bad: list[Completion]
    bad_file: DecodeError | None
    sampling: Sampling
    stopped: Completion | None
    stop: str
    constrained: Round | None
    rounds: list[Round]

    @property
    def busiest(self) -> int:
        """Place of the scene with most questions."""
        return busiest(self.scenes)


def busiest(scenes: Sequence[Scene]) -> int:
    """Return the place of the scene with most questions."""
    return max(range(len(scenes)), key=lambda place: len(scenes[place].questions))


class Asker:
    """Asks about scenes, and keeps every round."""

    def __init__(self, engine: Engine, say: Say, *, takes_detail: bool) -> None:
        """Ask an engine.

        Args:
            engine: The engine.
            say: Called with what is done so far, every few seconds.
            takes_detail: Whether its model can take a picture at low detail.
        """
        self.engine, self.say, self.takes_detail = engine, say, takes_detail
        self.rounds: list[Round] = []

    def about(self, scene: Scene, texts: Sequence[str] = (), **options: object) -> Asked:
        """Ask all questions about a scene, or these."""
        questions = [
            Question(text, **{"max_new_tokens": MAX_NEW_TOKENS, **options})  # type: ignore[arg-type]
            for text in texts or [text for text, _ in scene.questions]
        ]
        return Asked(scene.conversation(takes_detail=self.takes_detail), tuple(questions))

    def ask(self, asked: Sequence[Asked]) -> Round:
        """Ask in one run."""
        found = ask(self.engine, asked, self.say)
        self.rounds.append(found)
        return found


def ask_reference(
    engine: Engine, scenes: Sequence[Scene], say: Say, *, takes_detail: bool
) -> Round:
    """Ask the reference about all scenes, with the most likely tokens beside each token."""
    asker = Asker(engine, say, takes_detail=takes_detail)
    return asker.ask([asker.about(scene, logprobs=TOP_TOKENS) for scene in scenes])


def run_trial(engine: Engine, scenes: list[Scene], say: Say, *, takes_detail: bool) -> Trial:
    """Ask everything.

    Args:
        engine: The engine under test.
        scenes: The scenes.
        say: Called with what is done next.
        takes_detail: Whether the model can take a picture at low detail.

    Raises:
        EngineError: The engine cannot go on.
    """
    asker = Asker(engine, say, takes_detail=takes_detail)
    say("all questions at once")
    together = asker.ask([asker.about(scene, logprobs=2) for scene in scenes])
    say("all questions again")
    again = asker.ask([asker.about(scene) for scene in scenes])
    say("one question at a time")
    alone = [
        asker.ask([asker.about(scene, [scene.questions[0][0]], logprobs=TOP_TOKENS)])
        for scene in scenes
    ]
    pair = scenes[busiest(scenes)]
    separate = asker.ask(
        [asker.about(pair, [text], logprobs=TOP_TOKENS) for text, _ in pair.questions]
    )
    say("bad pictures among good ones")
    small = [place for place, scene in enumerate(scenes) if scene.detail and not scene.is_clip]
    beside_bad, bad, bad_file = _ask_beside_bad(asker, [scenes[place] for place in small])
    constrained = None
    if getattr(engine, "takes_constraints", False) and find_spec("llguidance"):
        say("constrained answers among others")
        constraints = [None if number % 2 else CONSTRAINT for number in range(len(small))]
        constrained = asker.ask(
            [
                asker.about(scenes[place], [scenes[place].questions[0][0]], constraint=constraint)
                for place, constraint in zip(small, constraints, strict=True)
            ]
        )
    say("sampling and stop strings")
    sampling = _sample(asker, pair)
    stopped, stop = _stop(asker, pair, again.answers[busiest(scenes)][0].text or "")
    return Trial(
        *(scenes, together, again, alone, separate, small, beside_bad, bad, bad_file),
        *(sampling, stopped, stop, constrained, asker.rounds),
    )


def _ask_beside_bad(
    asker: Asker, scenes: Sequence[Scene]
) -> tuple[list[list[Completion]], list[Completion], DecodeError | None]:
    """Ask about scenes, with a request that cannot be answered before every second one."""
    bad_file: DecodeError | None = None
    try:
        load_image(io.BytesIO(broken_jpeg()), MAX_PIXELS)
    except DecodeError as error:
        bad_file = error
    words = Question("word " * TOO_MANY_WORDS, max_new_tokens=MAX_NEW_TOKENS)
    narrow = Question(scenes[0].questions[0][0], max_new_tokens=MAX_NEW_TOKENS)
    bad = [
        Asked(Conversation.about("image", strip(), "bad strip"), (narrow,)),
        Asked(Conversation.about("image", Pixels([]), "bad empty"), (narrow,)),
        Asked(scenes[0].conversation(takes_detail=asker.takes_detail), (words,)),
    ]
    asked: list[Asked] = []
    places: list[int] = []
    for place, scene in enumerate(scenes):
        if place % 2 == 0 and place // 2 < len(bad):
            places.append(len(asked))
            asked.append(bad[place // 2])
        asked.append(asker.about(scene))
    answers = asker.ask(asked).answers
    good = [found for place, found in enumerate(answers) if place not in places]
    return good, [answers[place][0] for place in places], bad_file


def _sample(asker: Asker, scene: Scene) -> Sampling:
    """Sample answers to one question."""
    asked = asker.about(scene, [scene.questions[0][0]])
    (question,) = asked.questions
    seeded = tuple(
        dataclasses.replace(question, temperature=TEMPERATURE, seed=seed) for seed in SEEDS
    )
    first = asker.ask([Asked(asked.conversation, seeded)]).flat
    second = asker.ask([Asked(asked.conversation, seeded)]).flat
    (alone,) = asker.ask([Asked(asked.conversation, seeded[:1])]).flat
    return Sampling(first, second, alone)


def _stop(asker: Asker, scene: Scene, answer: str) -> tuple[Completion | None, str]:
    """Ask a question again, with a stop string from the middle of its answer."""
    stop = answer[len(answer) // 2 :][:3]
    if len(answer) < 6 or not stop.strip():
        return None, ""
    asked = asker.about(scene, [scene.questions[0][0]], stop=("never written", stop))
    (found,) = asker.ask([asked]).flat
    return found, stop
