"""Static plans: a decoder's forward pass of new tokens as a list of steps, run by one call of C.

    session = PlannedSession(params, config, batch=1, room=100)
    scores = session.extend([[5, 3, 8]])

models/ remains the reference: a property says that both compute the same (tests/test_decode.py).
"""
from pyllama.decode.families import has_plan, plan_of
from pyllama.decode.plan import Plan
from pyllama.decode.session import PlannedSession

__all__ = ["Plan", "PlannedSession", "has_plan", "plan_of"]
