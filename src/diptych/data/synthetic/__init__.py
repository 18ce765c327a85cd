"""The built-in world: pictures, captions and questions from one graph, drawn on the fly from a seed. No torch."""

from diptych.data.synthetic.source import SceneQuestions, Scenes
from diptych.data.synthetic.world import Phrase, Scene, Thing

__all__ = ["Phrase", "Scene", "SceneQuestions", "Scenes", "Thing"]
