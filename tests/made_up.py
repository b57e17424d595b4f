"""Made-up times, so that what tuning chooses is the same on any machine."""

from jaxq.plan import tactics, tune


def set_times(monkeypatch, alone, whole):
    """Sets what tuning measures.

    Args:
      alone: what is timed to its seconds: a layer in a precision, by a tactic; a border.
      whole: {network: seconds}; 9 for those that are not there.

    Returns the list that what is timed alone goes to.
    """
    timed = []

    def made_up(calls, cache, alike=()):
        timed.extend(calls)
        found = {what: alone(what) for what in calls}
        for what, seconds in found.items():
            cache.put(what, seconds)
        return found

    monkeypatch.setattr(tune, "timed", made_up)
    monkeypatch.setattr(tactics, "timed", made_up)
    monkeypatch.setattr(tune, "fastest", lambda calls, seconds: {name: whole.get(name, 9.0) for name in calls})
    return timed
