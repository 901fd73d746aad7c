"""The `[training]` table of a task file."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.text import INPUT_FIELDS


class TrainingSettings(BaseModel):
    """How the network is trained: sizes, rates and probabilities; see network.py and fit.py.

    Attributes:
        table_rows, table_width: the table's size, half a byte a number in the bundle; most of the bundle.
        word_vectors: whether the linear models also ask a sentence encoder what words mean, see word_vectors.py.
        made_up_titles: about so many titles, beside the shop's own, a language model is asked, but at most ten for each listing
            it has learned from; where a task has a `taught_share`, see made_up.py.
        ordered_words: so many of the commonest words are read in their order, where a task has a `taught_share`, see
            word_order.py; 0 for a graph without that branch, smaller and faster.
        broad_width: of the layer that tasks with `broad = true` read, see network.py; 0 for a graph without it.
        weighing: how the tasks' losses are added up, see losses.py.
        cover_epochs: how often the cover branch sees every cover before it joins the text, see cover_start.py.
        cover_teacher: whether the branch also learns to see what a network of photographs sees, see cover_teacher.py.
        cover_dropout, text_dropout: how often a row's cover, and all of its text, is hidden: a cover learns to stand alone, and
            a listing that says nothing gets the priors.
        folds: the start is fitted as often again, each time without a part of the rows, see linear_models.py.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table_rows: int = Field(default=150_000, ge=16)
    table_width: int = Field(default=128, ge=4, multiple_of=2)
    hidden_width: int = Field(default=192, ge=4)
    embedding_width: int = Field(default=96, ge=4, le=128)
    word_vectors: bool = True
    made_up_titles: int = Field(default=300_000, ge=0)
    ordered_words: int = Field(default=20_000, ge=0)
    broad_width: int = Field(default=512, ge=0)
    epochs: int = Field(default=8, ge=1)
    averaged_epochs: int = Field(default=3, ge=1)
    batch_rows: int = Field(default=512, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    folds: int = Field(default=3, ge=2)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    weighing: Literal["static", "uncertainty", "famo"] = "static"
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    cover_epochs: int = Field(default=30, ge=0)
    cover_teacher: bool = True
    cover_dropout: float = Field(default=0.25, ge=0, lt=1)
    text_dropout: float = Field(default=0.05, ge=0, lt=1)
    hidden_input_probability: dict[str, float] = Field(
        default_factory=lambda: {
            "authors": 0.3, "publisher": 0.5, "description": 0.3, "language": 0.5, "year": 0.3, "format": 0.5,
            "currency": 0.2,
        }
    )  # fmt: skip

    @model_validator(mode="after")
    def _known_inputs(self) -> Self:
        if wrong := set(self.hidden_input_probability) - set(INPUT_FIELDS):
            raise ValueError(f"hidden_input_probability: expected {', '.join(INPUT_FIELDS)}; found {sorted(wrong)}")
        if wrong := {name for name, p in self.hidden_input_probability.items() if not 0 <= p < 1}:
            raise ValueError(f"hidden_input_probability: expected 0 <= p < 1 for {sorted(wrong)}")
        return self
