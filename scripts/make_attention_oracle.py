#!/usr/bin/env python3
"""Makes tests/data/attention_cudnn.npz on a GPU: attention with pair bias by cuDNN (through PyTorch's SDPA), bf16.

    scripts/make_attention_oracle.py tests/data/attention_cudnn.npz

Of each case: q, k, v, dy [batch, n, heads, c], bias [heads, n_query, n_key] or none, cuDNN's output o, and its dq, dk, dv where it
has a backward of the case. Numbers are bf16's, as f32.
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES = {  # batch, queries, keys, heads, channels, bias
    "triangle": (2, 96, 96, 4, 32, True),
    "row": (1, 136, 136, 8, 32, True),
    "wide": (1, 72, 104, 2, 64, True),
    "column": (2, 80, 80, 4, 32, False),
    "narrow": (1, 128, 200, 4, 16, False),
}


def main():
    torch.manual_seed(20)
    out = {}
    for name, (batch, n, m, heads, c, biased) in CASES.items():
        draw = lambda *shape: torch.randn(*shape, device="cuda").bfloat16()
        q, k, v, dy = draw(batch, n, heads, c), draw(batch, m, heads, c), draw(batch, m, heads, c), draw(batch, n, heads, c)
        arrays = dict(q=q, k=k, v=v, dy=dy)
        mask = None
        if biased:
            bias = 2 * draw(heads, n, m)
            arrays["bias"] = bias
            mask = bias[None].expand(batch, -1, -1, -1).contiguous()

        def run(*leaves):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in leaves), attn_mask=mask).transpose(1, 2)
        arrays["o"] = run(q, k, v)
        try:
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            arrays.update(zip(("dq", "dk", "dv"), torch.autograd.grad(run(*leaves), leaves, dy)))
        except RuntimeError as error:
            print(f"{name}: no gradients: {error}", file=sys.stderr)
        out.update({f"{name}/{key}": x.detach().float().cpu().numpy() for key, x in arrays.items()})
        print(name, sorted(arrays))
    np.savez_compressed(sys.argv[1], **out)
    print(f"cuDNN {torch.backends.cudnn.version()}, PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
