"""Linear regression with a penalty, in closed form, from sums over tokens that come in pieces."""

import torch


class Sums:
    """What a regression of `numbers` outputs on `features` inputs needs of its tokens; float64 on the tokens' device."""

    def __init__(self, features: int, numbers: int, device: torch.device):
        sizes = ((features, features), (features, numbers), (features,), (numbers,), (numbers,))
        made = [torch.zeros(size, dtype=torch.float64, device=device) for size in sizes]
        self._xx, self._xy, self._x, self._y, self._yy = made
        self.tokens = 0

    def add(self, features: torch.Tensor, numbers: torch.Tensor) -> None:
        """Tokens: [tokens, features] and [tokens, numbers]."""
        features, numbers = features.double(), numbers.double()
        self._xx += features.T @ features
        self._xy += features.T @ numbers
        self._x += features.sum(0)
        self._y += numbers.sum(0)
        self._yy += numbers.square().sum(0)
        self.tokens += len(features)

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [numbers, features] and bias [numbers], float64.

        The penalty is `ridge` times the mean variance of a feature; the bias has none.
        """
        mean, wanted = self._x / self.tokens, self._y / self.tokens
        covariance = self._xx / self.tokens - torch.outer(mean, mean)
        shared = self._xy / self.tokens - torch.outer(mean, wanted)
        penalty = ridge * covariance.diagonal().mean()
        factor = torch.linalg.cholesky(covariance + penalty * torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        weight = torch.cholesky_solve(shared, factor).T
        return weight, wanted - weight @ mean

    def explained(self, weight: torch.Tensor, bias: torch.Tensor, part: slice) -> float:
        """R2 of these tokens: the share of the variance of some outputs, all of them together."""
        weight, bias, xy, y = weight[part], bias[part], self._xy[:, part], self._y[part]
        left = (
            self._yy[part].sum()
            - 2 * (weight.T * xy).sum()
            + ((weight @ self._xx) * weight).sum()
            + 2 * bias @ (weight @ self._x - y)
            + self.tokens * bias.square().sum()
        )
        total = self._yy[part].sum() - y.square().sum() / self.tokens
        return float(1 - left / total)
