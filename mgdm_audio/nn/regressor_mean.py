"""The mean of what several regressors answer.

Networks of other kinds are wrong in other ways about sounds that they have not heard, and the
squared error of a mean is smaller than the mean of the squared errors by the variance between them.
Each answer adds up to the mix and keeps what is given, and so does their mean. Where one network
knows one stem better than another, each stem can have a mean of its own; what these leave of the
mix is then shared among them, bin by bin, in proportion to their power.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgdm_audio.nn.regressor import SpectralRegressor
from mgdm_audio.nn.stft import TightFrame


class RegressorMean(nn.Module):
    """A regressor that asks others.

    Arguments:
        networks: the others, of the same stems, with the same STFT, and either all or none of them
            trained on mixes that hold something beside the stems.
        shares: of each in the mean, a number or one for each stem; they add up to 1.

    Raises:
        ValueError: if the networks do not go together, or the shares do not fit.
    """

    def __init__(
        self,
        networks: Sequence[SpectralRegressor],
        shares: Sequence[float | Sequence[float]],
    ) -> None:
        super().__init__()
        if len(networks) != len(shares) or not networks:
            raise ValueError(f"got {len(networks)} networks and {len(shares)} shares")
        for what, values in (
            ("numbers of stems", {net.stems for net in networks}),
            ("STFT windows", {net.frame.n_fft for net in networks}),
            ("kinds of mixes", {net.beside is not None for net in networks}),
        ):
            if len(values) > 1:
                raise ValueError(f"the networks of a mean have different {what}: {sorted(values)}")
        self.networks = nn.ModuleList(networks)
        self.stems, self.beside = networks[0].stems, networks[0].beside
        by_stem = [
            [float(s) for s in share]
            if isinstance(share, Sequence)
            else [float(share)] * self.stems
            for share in shares
        ]
        if any(len(share) != self.stems for share in by_stem):
            raise ValueError(f"a share is a number or {self.stems}, got {list(shares)}")
        if any(min(s) < 0 or abs(sum(s) - 1) > 1e-6 for s in zip(*by_stem, strict=True)):
            raise ValueError(f"shares must add up to 1, none below 0, got {list(shares)}")
        self.shares = tuple(map(tuple, by_stem))
        self.alike = all(len(set(share)) == 1 for share in by_stem)

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
        # Not by einsum, which autocast would do in bfloat16.
        mean = (answers.new_tensor(self.shares)[:, None, :, None] * answers).sum(0)
        mean = torch.where(known[:, :, None], stems, mean)
        # Beside other sounds, what the stems leave of the mix is the estimate of those.
        return mean if self.alike or other is not None else self._shared(mix, mean, known)

    def _shared(self, mix: Tensor, stems: Tensor, known: Tensor) -> Tensor:
        """The stems with what they leave of the mix, shared among those that are not given."""
        length = mix.shape[-1]
        padding = (0, -length % self.frame.hop)
        rest = self.frame(F.pad((mix - stems.sum(1, keepdim=True)).float(), padding))
        power = self.frame(F.pad(stems.float(), padding)).abs().square()
        power = torch.where(known[:, :, None, None], 0, power)
        total = power.sum(1, keepdim=True)
        # Where all are silent, all have the same share: what is left there is not lost.
        unknown = (~known)[:, :, None, None] / (~known).sum(1).clamp_min(1)[:, None, None, None]
        share = torch.where(total > 0, power / total.clamp_min(1e-30), unknown)
        more = self.frame.inverse(share * rest)[..., :length].to(stems.dtype)
        return torch.where(known[:, :, None], stems, stems + more)
