"""Low rank factors in the place of layers: another way to a smaller network than pruning."""

from ssl_lightning.low_rank.factorising import Factorised, factorise, factorised
from ssl_lightning.low_rank.reporting import FactorRow, LowRankReport

__all__ = ["FactorRow", "Factorised", "LowRankReport", "factorise", "factorised"]
