"""Fused likelihoods: value and hand-derived gradient of the NLL in one pass over the rows.

Autodiff of a mixture's NLL makes some twenty passes, each of which writes ``[N, K]`` or
``[N, K, D]`` numbers to memory and reads them again. The gradient has a closed form, and everything
in it is known once a row's value is: so the forward pass writes it, a few hundred rows at a time,
while they are in cache, and the backward pass has nothing left to do.

| module | what it holds |
|---|---|
| ``full_normal`` | one family's log-density and its pullback (others': in ``components``) |
| ``rows`` | raw outputs of a block of rows -> NLL, gradient (any head; by autodiff if need be) |
| ``chunked`` | the loop over blocks of rows, from raw outputs |
| ``linear`` | the same from the last hidden layer: raw outputs exist a block at a time |
| ``devices`` | each device on its own rows, where the compiler spreads rows over several |
| ``triton``, ``triton_program`` | ``rows`` as one kernel for GPUs (Pallas) |
| ``triton_diagonal``, ``triton_full`` | a covariance's part of that kernel |
| ``dispatch`` | which implementation serves |

All of it is reached through :func:`jaxmdn.nll` and :func:`jaxmdn.linear_nll`. Each is a
``custom_jvp`` whose rule is linear in the tangents with the gradient as its coefficients: reverse
mode transposes it into "cotangent times gradient", forward mode and higher orders work as well,
which a ``custom_vjp`` would forbid.
"""
