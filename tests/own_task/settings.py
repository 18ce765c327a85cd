@settings()
class Orientation(Evaluation):
    """Orientation of images: accuracy of the number of quarter turns."""

    task: ClassVar[str] = "orientation"
    untrained: ClassVar[str] = "vit.base"
