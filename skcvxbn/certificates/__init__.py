"""Lower bounds that are proofs about networks of any width, without listing arrangements."""

from skcvxbn.certificates.proof import prove
from skcvxbn.certificates.violation import ViolationBound, bound_violation

__all__ = ["ViolationBound", "bound_violation", "prove"]
