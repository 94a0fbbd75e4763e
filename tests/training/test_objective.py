"""The named objectives: defaults that stand together, and that a user's own settings override."""

from __future__ import annotations

import pytest

from pad_pipeline.training.settings import PatchLossSettings, Stage2Settings, TrainSettings


def test_an_objective_sets_defaults_and_the_users_settings_win() -> None:
    """Catches a user's setting that a name overrides, settings of one kind of loss that are given to another, and a
    training that can't be continued because its settings read back differ."""
    paper, aligned = TrainSettings(), TrainSettings.model_validate({"objective": "aligned"})
    assert TrainSettings.model_validate({"objective": "paper"}) == paper
    assert paper.patch_loss == PatchLossSettings()
    assert aligned.patch_loss.kind == "contrastive"
    own = TrainSettings.model_validate({"objective": "aligned", "patch_loss": {"temperature": 0.2}})
    assert own.patch_loss == aligned.patch_loss.model_copy(update={"temperature": 0.2})
    other = TrainSettings.model_validate({"objective": "aligned", "patch_loss": {"kind": "cosine"}})
    assert other.patch_loss == PatchLossSettings()
    given = TrainSettings.model_validate({"objective": "aligned", "patch_loss": PatchLossSettings()})
    assert given.patch_loss == PatchLossSettings()
    for settings in (paper, aligned, own, other, given):
        assert TrainSettings.model_validate(settings.model_dump()) == settings
    assert (aligned.beta_start, aligned.beta_end) == (1, 0) and (paper.beta_start, paper.beta_end) == (0, 5)
    assert TrainSettings.model_validate({"objective": "aligned", "beta_end": 5}).beta_end == 5
    second = Stage2Settings.model_validate({"objective": "aligned"})
    assert second.patch_loss == aligned.patch_loss and (second.beta_start, second.beta_end) == (0, 0)
    with pytest.raises(ValueError, match="objective"):
        TrainSettings.model_validate({"objective": "best"})
