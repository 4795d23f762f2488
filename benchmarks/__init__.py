"""jaxmdn beside its peers, in one process, every number checked before it is timed.

``python -m benchmarks`` runs the suite from the repository's root, on whatever device JAX sees.

| module | what it holds |
|---|---|
| ``cases`` | what is measured: operations and shapes |
| ``densities`` | the textbook formula, distrax, TFP, numpyro, torch: as their users write it |
| ``problem`` | a case's arrays and, in float64, what must come out |
| ``checks`` | is it the right number? |
| ``contenders``, ``training``, ``epochs`` | who takes part in which case; training steps, epochs |
| ``environment`` | the roofs the device was measured to have, the versions |
| ``suite``, ``families`` | the loops; a failure is a record, not a crash |
| ``launches`` | what a GPU would launch, counted in its compiled program without one |
| ``report``, ``pictures`` | JSON, Markdown, plots |

How a time is taken stands in ``jaxmdn.cli.timing``.
"""
