"""The battery: one public set of checks that every model of this library passes, and that any model can be held to.

    from morphogen.testing import box, check_model
    check_model(MyFlow(dim=2), source, normalise=box(-8, 8, 2)).raise_if_failed()

Each check has one meaning, so that a fault fails the check meant for it and no other: what would only repeat an
earlier finding is skipped and says so. The example followed is scikit-learn's `check_estimator`.
"""

from .battery import CHECKS, ContractBroken, Report, Result, check_model
from .case import Everything, box

__all__ = ["CHECKS", "ContractBroken", "Everything", "Report", "Result", "box", "check_model"]
