"""Benchmarks: jaxmdn beside its peers, in one process, every number checked before it is timed.

``jaxmdn bench`` runs the suite on whatever device JAX sees.

| module | what it holds |
|---|---|
| ``cases`` | what is measured: operations and shapes |
| ``problem`` | a case's arrays and, in float64, what must come out |
| ``densities`` | the textbook formula, distrax, TFP, numpyro: as their users write it |
| ``torch_peers`` | the same in torch: ``torch.distributions``, and ``torch.compile`` |
| ``contenders`` | who takes part in which case |
| ``training`` | training steps, alone, in a scan, and of an ensemble |
| ``checks`` | is it the right number? |
| ``timing`` | compile, warm up, run in alternation |
| ``environment`` | the device, its measured roofs, the versions |
| ``suite`` | the loop that brings these together; a failure is a record, not a crash |
| ``records``, ``report``, ``pictures``, ``files`` | Markdown, plots, JSON |

Loaded on demand only: nothing else in the library imports it.
"""
