"""The mean of what several regressors answer.

Networks of other kinds are wrong in other ways about sounds that they have not heard, and the
squared error of a mean is smaller than the mean of the squared errors by the variance between them.
Each answer adds up to the mix and keeps what is given, and so does their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mgdm_audio.nn.regressor import SpectralRegressor
from mgdm_audio.nn.stft import TightFrame


class RegressorMean(nn.Module):
    """A regressor that asks others.

    Arguments:
        networks: the others, of the same stems, with the same STFT, and either all or none of them
            trained on mixes that hold something beside the stems.
        shares: of each in the mean; they add up to 1.

    Raises:
        ValueError: if the networks do not go together, or the shares do not fit.
    """

    def __init__(self, networks: Sequence[SpectralRegressor], shares: Sequence[float]) -> None:
        super().__init__()
        if len(networks) != len(shares) or not networks:
            raise ValueError(f"got {len(networks)} networks and {len(shares)} shares")
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares must add up to 1, none below 0, got {list(shares)}")
        for what, values in (
            ("numbers of stems", {net.stems for net in networks}),
            ("STFT windows", {net.frame.n_fft for net in networks}),
            ("kinds of mixes", {net.beside is not None for net in networks}),
        ):
            if len(values) > 1:
                raise ValueError(f"the networks of a mean have different {what}: {sorted(values)}")
        self.networks = nn.ModuleList(networks)
        self.shares = tuple(float(share) for share in shares)
        self.stems, self.beside = networks[0].stems, networks[0].beside

    @property
    def frame(self) -> TightFrame:
        """The STFT of all networks."""
        first = self.networks[0]
        assert isinstance(first, SpectralRegressor)
        return first.frame

    def forward(
        self, mix: Tensor, stems: Tensor, known: Tensor, other: Tensor | None = None
    ) -> Tensor:
        """See :meth:`SpectralRegressor.forward`."""
        answers = torch.stack([net(mix, stems, known, other) for net in self.networks])
        mean = torch.einsum("n,nbkt->bkt", answers.new_tensor(self.shares), answers)
        return torch.where(known[:, :, None], stems, mean)
