"""Triton kernels of ``conditional_interest``: DTRN (CIKM 2023) Eq. 3-8, forward and backward.

What each launch computes, in order:

forward
    segments         the sequence of every token
    parameters       weights cast, padded and laid out for the kernels
    self_attention   Q, K, V of every token; then u0 = norm(x + MHSA(x)), once for all tasks
    decoder          the decoder's queries absorbed into its key projection
    encoder          per (task, behavior): u1 = norm(out0 + FFN(out0)), scores, online softmax, pooled
    decoder          W_V, W_O, residual, norm, FFN, norm on B * T * M rows

backward, from the saved u0, pooled vectors and softmax statistics
    decoder_backward, encoder_backward, self_attention_backward, decoder_backward (queries),
    parameters       sum of the weight gradients of all programs, in a fixed order

Weight gradients are summed per program in memory of its own and added up in a fixed order at the end:
results have the same bits from run to run, with no atomics. No kernel reads anything back to the host.
"""
