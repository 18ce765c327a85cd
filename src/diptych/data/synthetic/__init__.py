"""The built-in world: synthetic images, captions and questions generated from scene graphs by a seed. Torch-free."""

from diptych.data.synthetic.source import SceneExpressions, SceneQuestions, Scenes
from diptych.data.synthetic.world import Phrase, Scene, Thing

__all__ = ["Phrase", "Scene", "SceneExpressions", "SceneQuestions", "Scenes", "Thing"]
