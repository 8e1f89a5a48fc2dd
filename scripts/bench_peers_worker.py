"""The peers of bench_peers.py and how one of them is timed: run by it as `bench_peers_worker.py`, which takes jobs as JSON lines."""
import contextlib
import functools
import gc
import importlib.machinery
import json
import math
import os
import statistics
import sys
import time
import types
import unittest.mock

HEADS, HEAD = 4, 32  # of the triangle attention


# ---- Plain PyTorch

def plain_modules():
    import torch
    import torch.nn.functional as F
    from torch import nn

    def core(how, q, k, v, bias):
        """q, k, v [batch, heads, n, c], bias [heads, n, n] or None"""
        if how == "flex" and bias is not None:
            from torch.nn.attention.flex_attention import flex_attention
            return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[h, i, j])
        if how == "cueq":
            import cuequivariance_ops_torch
            zero = bias if bias is not None else q.new_zeros(q.shape[1], q.shape[2], k.shape[2])
            return cuequivariance_ops_torch.triangle_attention(q[None], k[None], v[None], zero[None, None])[0]
        if how == "cudnn":
            from torch.nn.attention import SDPBackend, sdpa_kernel
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].expand(q.shape[0], -1, -1, -1))
        mask = None if bias is None else bias[None].expand(q.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    class Attention(nn.Module):
        def __init__(self, c, heads, head, how, c_bias=0):
            super().__init__()
            self.how, self.heads, self.head = how, heads, head
            self.norm, self.qkvg = nn.LayerNorm(c), nn.Linear(c, 4 * heads * head, bias=False)
            self.gate, self.out = nn.Parameter(torch.ones(heads * head)), nn.Linear(heads * head, c)
            self.bias_norm = nn.LayerNorm(c_bias) if c_bias and c_bias != c else None
            self.bias = nn.Linear(c_bias, heads, bias=False) if c_bias else None

        def forward(self, x, pair=None):
            x = self.norm(x)
            bias = None
            if self.bias:
                pair = x if pair is None else self.bias_norm(pair)
                bias = self.bias(pair).permute(2, 0, 1)
            q, k, v, g = self.qkvg(x).chunk(4, -1)
            split = lambda t: t.unflatten(-1, (self.heads, self.head)).transpose(1, 2)
            o = core(self.how, split(q), split(k), split(v), bias).transpose(1, 2).flatten(-2)
            return self.out(o * torch.sigmoid(g + self.gate))

    class GlobalAttention(nn.Module):  # one query for all rows of a column
        def __init__(self, c, heads, head):
            super().__init__()
            self.heads, self.head = heads, head
            self.norm, self.q = nn.LayerNorm(c), nn.Linear(c, heads * head, bias=False)
            self.kv, self.gate, self.out = nn.Linear(c, 2 * head, bias=False), nn.Linear(c, heads * head), nn.Linear(heads * head, c)

        def forward(self, x):
            x = self.norm(x)
            k, v = self.kv(x).chunk(2, -1)
            q = self.q(x.mean(1)).unflatten(-1, (self.heads, self.head))
            a = torch.softmax(q @ k.transpose(1, 2) * self.head ** -0.5, -1)
            return self.out(torch.sigmoid(self.gate(x)) * (a @ v).flatten(-2)[:, None])

    class Transition(nn.Sequential):
        def __init__(self, c):
            super().__init__(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.ReLU(), nn.Linear(4 * c, c))

    class OuterProductMean(nn.Module):
        def __init__(self, c_m, c_z, c=32):
            super().__init__()
            self.norm, self.ab, self.out = nn.LayerNorm(c_m), nn.Linear(c_m, 2 * c), nn.Linear(c * c, c_z)

        def forward(self, m):
            a, b = self.ab(self.norm(m)).chunk(2, -1)
            return self.out(torch.einsum("sic,sjd->ijcd", a, b).flatten(-2) / (m.shape[0] + 1e-3))

    class TriangleMultiplication(nn.Module):
        def __init__(self, c, how, outgoing=True):
            super().__init__()
            self.how, self.outgoing = how, outgoing
            self.norm, self.ab, self.ab_gate = nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.Linear(c, 2 * c)
            self.norm_out, self.out, self.gate = nn.LayerNorm(c), nn.Linear(c, c), nn.Linear(c, c)

        def forward(self, z):
            if self.how == "cueq":
                from cuequivariance_ops_torch import triangle_multiplicative_update
                w = {}
                for key, layer in (("norm_in", self.norm), ("p_in", self.ab), ("g_in", self.ab_gate), ("norm_out", self.norm_out),
                                   ("p_out", self.out), ("g_out", self.gate)):
                    w[f"{key}_weight"], w[f"{key}_bias"] = layer.weight, layer.bias
                mask = z.new_ones(1, *z.shape[:2])
                return triangle_multiplicative_update(z[None], "outgoing" if self.outgoing else "incoming", mask=mask, **w)[0]
            x = self.norm(z)
            a, b = (self.ab(x) * torch.sigmoid(self.ab_gate(x))).permute(2, 0, 1).chunk(2, 0)
            p = a @ b.transpose(1, 2) if self.outgoing else b.transpose(1, 2) @ a
            return self.out(self.norm_out(p.permute(1, 2, 0))) * torch.sigmoid(self.gate(x))

    class Block(nn.Module):
        def __init__(self, how, c_m=256, c_z=128, extra=False):
            super().__init__()
            self.row = Attention(c_m, 8, 8 if extra else 32, how, c_z)
            self.column = GlobalAttention(c_m, 8, 8) if extra else Attention(c_m, 8, 32, how)
            self.transition, self.outer = Transition(c_m), OuterProductMean(c_m, c_z)
            self.outgoing, self.incoming = TriangleMultiplication(c_z, how), TriangleMultiplication(c_z, how, False)
            self.starting, self.ending = Attention(c_z, HEADS, HEAD, how, c_z), Attention(c_z, HEADS, HEAD, how, c_z)
            self.pair_transition = Transition(c_z)

        def forward(self, m, z):
            m = m + self.row(m, z)
            m = m + self.column(m.transpose(0, 1)).transpose(0, 1)
            m = m + self.transition(m)
            z = z + self.outer(m)
            z = z + self.outgoing(z)
            z = z + self.incoming(z)
            z = z + self.starting(z)
            z = z + self.ending(z.transpose(0, 1)).transpose(0, 1)
            return m, z + self.pair_transition(z)

    return types.SimpleNamespace(core=core, Attention=Attention, Transition=Transition, OuterProductMean=OuterProductMean,
                                 TriangleMultiplication=TriangleMultiplication, Block=Block)


# ---- OpenFold's, FastFold's and AlphaFold's own

class Absent(types.ModuleType):
    """Stands for a package that a peer imports beside the network and that nothing here calls."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class AbsentFinder:
    names = ("Bio", "modelcif", "ihm", "dllogger", "colossalai", "fastfold_layer_norm_cuda", "fastfold_softmax_cuda")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def package(name, folder):
    """Puts a peer's package in reach without what its own __init__ imports. False where it is already."""
    if name in sys.modules:
        return False
    if not folder or not os.path.isdir(os.path.join(folder, name)):
        raise ImportError(f"no --peers folder with {name}")
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(folder, name)]
    if not any(isinstance(finder, AbsentFinder) for finder in sys.meta_path):
        sys.meta_path.append(AbsentFinder())
    return True


def openfold(folder):
    """Imports OpenFold's network alone, its CUDA softmax replaced by PyTorch's in place."""
    if not package("openfold", folder):
        return
    import torch

    def forward_(x, rows, columns):
        x = x.view(rows, columns)
        torch.softmax(x, -1, out=x) if x.is_cuda else x.copy_(torch.softmax(x, -1))

    def backward_(p, dy, v, rows, columns, channels):
        p.copy_(torch._softmax_backward_data(dy @ v.transpose(-1, -2), p, -1, p.dtype))

    softmax = types.ModuleType("attn_core_inplace_cuda")
    softmax.forward_, softmax.backward_ = torch.no_grad()(forward_), torch.no_grad()(backward_)
    sys.modules["attn_core_inplace_cuda"] = softmax
    import torch.utils.checkpoint
    torch.utils.checkpoint.checkpoint = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    import openfold.model.primitives as primitives
    primitives.trunc_normal_init_ = lambda weights, *a, **k: None  # minutes for 93 M; `randomised` fills them
    import openfold.model.model  # noqa: F401
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("openfold.") and hasattr(module, "is_fp16_enabled"):
            module.is_fp16_enabled = lambda: False  # of bf16 it is false; a graph break otherwise


def openfold_block():
    from openfold.model.evoformer import EvoformerBlock
    return EvoformerBlock(c_m=256, c_z=128, c_hidden_msa_att=32, c_hidden_opm=32, c_hidden_mul=128, c_hidden_pair_att=HEAD,
                          no_heads_msa=8, no_heads_pair=HEADS, transition_n=4, msa_dropout=0.15, pair_dropout=0.25,
                          no_column_attention=False, opm_first=False, fuse_projection_weights=False, inf=1e9, eps=1e-8)


def openfold_model(preset, training):
    from openfold.config import model_config
    from openfold.model.model import AlphaFold
    config = model_config(preset, train=training)
    config.model.template.enabled = False
    config.globals.chunk_size = None
    return AlphaFold(config)


def openfold_features(S, N, E, device, dtype):
    import torch
    whole = lambda *shape: torch.zeros(*shape, dtype=torch.long)
    ones, noise = torch.ones, torch.rand
    batch = dict(aatype=torch.randint(0, 20, (N,)), target_feat=noise(N, 22), residue_index=torch.arange(N), seq_mask=ones(N),
                 msa_feat=noise(S, N, 49), msa_mask=ones(S, N), extra_msa=torch.randint(0, 22, (E, N)), extra_msa_mask=ones(E, N),
                 extra_has_deletion=noise(E, N), extra_deletion_value=noise(E, N), atom14_atom_exists=ones(N, 14),
                 atom37_atom_exists=ones(N, 37), residx_atom14_to_atom37=whole(N, 14), residx_atom37_to_atom14=whole(N, 37))
    return {k: (v.to(dtype) if v.is_floating_point() else v).unsqueeze(-1).to(device) for k, v in batch.items()}


def fastfold_block(folder):
    """FastFold's, with its Triton kernels, on one GPU: ColossalAI's registry of processes has a stand-in."""
    if package("fastfold", folder):
        def stand_in(name, **members):
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(members)
        alone = types.SimpleNamespace(get_world_size=lambda *a: 1, get_local_rank=lambda *a: 0, get_global_rank=lambda *a: 0,
                                      get_group=lambda *a: None)
        stand_in("colossalai.context.parallel_mode", ParallelMode=types.SimpleNamespace(TENSOR=0, GLOBAL=1))
        stand_in("colossalai.core", global_context=alone)
        from fastfold.model.fastnn.kernel.layer_norm import LayerNormTritonFunc as norm
        theirs = norm.backward  # it takes any gradient for contiguous
        norm.backward = staticmethod(lambda context, dy: theirs(context, dy.contiguous()))
    from fastfold.model.fastnn.evoformer import Evoformer
    return Evoformer(c_m=256, c_z=128, first_block=False, last_block=False)


# ---- One peer's time

class Worker:
    def __init__(self, args, rows):
        import torch
        self.torch, self.args, self.rows = torch, args, rows
        self.device = args.device
        torch.manual_seed(0)
        torch._dynamo.config.recompile_limit = 64
        torch.backends.cuda.matmul.allow_tf32 = True
        self.plain = plain_modules()

    def randomised(self, module):
        torch = self.torch
        module = module.to(self.device)
        with torch.no_grad():
            for p in module.parameters():
                p.normal_(0, p.shape[-1] ** -0.5) if p.dim() > 1 else p.normal_(1, 0.1)
        return module.to(torch.bfloat16).eval()

    def turns(self, shape):
        """How many inputs take turns, so that no cache holds them."""
        return max(1, min(16, -(-(128 << 20) // (2 * math.prod(shape))))) if self.device == "cuda" else 1

    def copies(self, *shape, backward):
        torch = self.torch
        return [torch.randn(*shape, device=self.device, dtype=torch.bfloat16).requires_grad_(bool(backward))
                for _ in range(self.turns(shape))]

    def allocated(self, peak=False):
        cuda = self.torch.cuda
        return 0 if self.device != "cuda" else cuda.max_memory_allocated() if peak else cuda.memory_allocated()

    def time(self, calls, whole, graph=True):
        """Median ms of one of `calls`, which take turns; with a CUDA graph of them the shorter."""
        torch, cuda = self.torch, self.device == "cuda"
        sync = torch.cuda.synchronize if cuda else lambda: None
        before = self.allocated()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        calls[0]()
        sync()
        if self.args.prewarm:
            return {}
        mib = (self.allocated(True) - (0 if whole else before)) / 2**20

        def batch(n, call):
            if not cuda:
                start = time.perf_counter()
                for i in range(n):
                    call(i)
                return (time.perf_counter() - start) * 1e3 / n
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for i in range(n):
                call(i)
            end.record()
            sync()
            return begin.elapsed_time(end) / n

        turn = lambda i: calls[i % len(calls)]()
        batch(1, turn)
        one = batch(1, turn)
        n = int(min(200, max(1, 10 / one)))
        samples = 7 if one < 200 else 3 if one < 1000 else 1
        eager = statistics.median_low([batch(n, turn) for _ in range(samples)])
        result = {"ms": eager, "eager_ms": eager, "mib": mib}
        if cuda and graph and one < 200:
            try:
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    turn(0)
                sync()
                recorded = torch.cuda.CUDAGraph()
                with torch.cuda.graph(recorded, stream=stream):
                    for i in range(len(calls)):
                        turn(i)
                replay = lambda i: recorded.replay()
                batch(1, replay)
                n = int(min(200, max(1, 10 / (one * len(calls)))))
                ms = statistics.median_low([batch(n, replay) for _ in range(7)]) / len(calls)
                result["graph_ms"] = ms
                if ms < result["ms"]:
                    result.update(ms=ms, by="graph")
            except Exception as e:  # the eager time stands
                result["graph_error"] = f"{type(e).__name__}: {e}"[:200]
                sync()
        return result

    def module(self, row, peer, module, *shapes, call=None):
        """Times module(*inputs), with its backward where the row has one."""
        torch = self.torch
        f = module if call is None else lambda *x: call(module, *x)
        if "compiled" in peer:
            f = torch.compile(f, dynamic=False)
        sets = list(zip(*(self.copies(*shape, backward=row["backward"]) for shape in shapes)))
        if row["backward"]:
            weights = [p for p in module.parameters()] if hasattr(module, "parameters") else []
            outputs = f(*sets[0])
            seeds = [torch.randn_like(y.detach()) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]
            del outputs

            def both(inputs):
                y = f(*inputs)
                torch.autograd.grad(y, [*inputs, *weights], seeds, allow_unused=True)
            calls = [lambda x=x: both(x) for x in sets]
        else:
            def forward(inputs):
                with torch.no_grad():
                    f(*inputs)
            calls = [lambda x=x: forward(x) for x in sets]
        return self.time(calls, whole=False)

    def run(self, row, peer):
        torch, P, S, N = self.torch, self.plain, row["S"], row["N"]
        how = peer.split()[0]
        if how == "cueq" or "cueq" in peer:
            import cuequivariance_ops_torch  # noqa: F401
        if how == "flex" and self.device != "cuda":
            raise RuntimeError("flex attention wants a GPU here")
        if how == "openfold":
            openfold(self.args.peers)
        if how == "jax":
            return self.alphafold_block(row)
        mask = lambda *shape: torch.ones(*shape, device=self.device, dtype=torch.bfloat16)
        m, z = (S, N, 256), (N, N, 128)
        fresh = self.randomised
        name = row["name"]
        if name == "layer norm":
            return self.module(row, peer, fresh(torch.nn.LayerNorm(128)), (N * N, 128))
        if name == "triangle attention core":
            core = lambda q, k, v, bias: P.core(how, q, k, v, bias)
            return self.module(row, peer, core, *[(N, HEADS, N, HEAD)] * 3, (HEADS, N, N))
        if name == "optimizer":
            return self.optimizer(how)
        if name == "model":
            return self.model(row, peer)
        if name == "training step":
            return self.training(row, peer)
        if how == "fastfold":  # inside of a stack, where N counts the column that FastFold always adds
            return self.module(row, peer, fresh(fastfold_block(self.args.peers)), (1, *m), (1, *z),
                               call=lambda f, m, z: f(m, z, mask(S, N - 1), mask(N - 1, N - 1)))
        if how == "openfold":
            import openfold.model.triangular_attention as attention
            import openfold.model.triangular_multiplicative_update as multiplication
            from openfold.model.msa import MSARowAttentionWithPairBias
            from openfold.model.outer_product_mean import OuterProductMean
            make, shapes, call = {
                "block": (openfold_block, (m, z), lambda f, m, z: f(m, z, mask(S, N), mask(N, N))),
                "triangle multiplication": (lambda: multiplication.TriangleMultiplicationOutgoing(128, 128), (z,),
                                            lambda f, z: f(z, mask=mask(N, N))),
                "triangle attention": (lambda: attention.TriangleAttention(128, HEAD, HEADS), (z,), lambda f, z: f(z, mask=mask(N, N))),
                "row attention": (lambda: MSARowAttentionWithPairBias(256, 128, 32, 8), (m, z), lambda f, m, z: f(m, z=z, mask=mask(S, N))),
                "outer product mean": (lambda: OuterProductMean(256, 128, 32), (m,), lambda f, m: f(m, mask=mask(S, N))),
            }[name]
            return self.module(row, peer, fresh(make()), *shapes, call=call)
        make, *shapes = {
            "block": (lambda: P.Block(how), m, z),
            "triangle multiplication": (lambda: P.TriangleMultiplication(128, how), z),
            "triangle attention": (lambda: P.Attention(128, HEADS, HEAD, how, 128), z),
            "row attention": (lambda: P.Attention(256, 8, 32, how, 128), m, z),
            "outer product mean": (lambda: P.OuterProductMean(256, 128), m),
        }[name]
        return self.module(row, peer, fresh(make()), *shapes)

    def alphafold_block(self, row):
        """AlphaFold's own, compiled by XLA; whole batches of calls by the clock, memory as XLA plans it."""
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        package("alphafold", self.args.peers)
        import haiku
        import jax
        from alphafold.model import config, modules, prng, utils
        settings, key = config.model_config("model_3_ptm").model, jax.random.PRNGKey(0)
        settings.global_config.update(zero_init=False, subbatch_size=None)

        def block(m, z):
            ones = lambda x: jax.numpy.ones(x.shape[:2], x.dtype)
            with utils.bfloat16_context():
                layer = modules.EvoformerIteration(settings.embeddings_and_evoformer.evoformer, settings.global_config, is_extra_msa=False)
                y = layer({"msa": m, "pair": z}, {"msa": ones(m), "pair": ones(z)}, is_training=False,
                          safe_key=prng.SafeKey(haiku.next_rng_key()))
            return y["msa"], y["pair"]
        network = haiku.transform(block)
        noise = lambda *shape, dtype="bfloat16": jax.random.normal(key, shape, dtype)
        shapes = (row["S"], row["N"], 256), (row["N"], row["N"], 128)
        sets = list(zip(*([noise(*shape) for _ in range(self.turns(shape))] for shape in shapes)))
        weights = jax.tree_util.tree_map(
            lambda w: noise(*w.shape, dtype=w.dtype) * w.shape[0] ** -0.5 if len(w.shape) > 1 else jax.numpy.ones(w.shape, w.dtype),
            jax.eval_shape(network.init, key, *sets[0]))

        def forward(weights, m, z):
            return network.apply(weights, key, m, z)

        def both(weights, m, z, seeds):
            return jax.vjp(forward, weights, m, z)[1](seeds)
        seeds = [tuple(noise(*shape) for shape in shapes)] if row["backward"] else []
        call = jax.jit(both if row["backward"] else forward).lower(weights, *sets[0], *seeds).compile()
        if self.args.prewarm:
            return {}
        plan = call.memory_analysis()

        def batch(n):
            start = time.perf_counter()
            for i in range(n):
                y = call(weights, *sets[i % len(sets)], *seeds)
            jax.block_until_ready(y)
            return (time.perf_counter() - start) * 1e3 / n
        batch(len(sets))
        n = int(min(200, max(1, 100 / batch(1))))
        return {"ms": statistics.median_low([batch(n) for _ in range(7)]),
                "mib": (plan.temp_size_in_bytes + plan.output_size_in_bytes) / 2**20}

    def trunk(self, S, N, E):
        """48 + 4 compiled blocks with one block's weights, and their inputs."""
        torch, P = self.torch, self.plain
        main, extra = fresh_pair = [self.randomised(P.Block("sdpa", c_m, extra=e)) for c_m, e in ((256, False), (64, True))]
        main_f, extra_f = (torch.compile(b, dynamic=False) for b in fresh_pair)
        inputs = [torch.randn(*s, device=self.device, dtype=torch.bfloat16) for s in ((S, N, 256), (E, N, 64), (N, N, 128))]

        def run(m, e, z, block=lambda f, *x: f(*x)):
            for _ in range(4):
                e, z = block(extra_f, e, z)
            for _ in range(48):
                m, z = block(main_f, m, z)
            return m, z
        return run, inputs, [*main.parameters(), *extra.parameters()]

    def model(self, row, peer):
        torch, S, N = self.torch, row["S"], row["N"]
        E = int(row["arguments"][row["arguments"].index("--n-extra") + 1])
        if peer == "trunk":
            run, inputs, _ = self.trunk(S, N, E)
        else:
            model = self.randomised(openfold_model("model_3_ptm", False))
            inputs = [openfold_features(S, N, E, self.device, torch.bfloat16)]
            run = lambda batch: model(dict(batch))

        def forward():
            with torch.no_grad():
                run(*inputs)
        with self.openfold_with_cueq() if "cueq" in peer else contextlib.nullcontext():
            return self.time([forward], whole=True, graph=peer == "trunk")

    @contextlib.contextmanager
    def openfold_with_cueq(self):
        """OpenFold's attention with pair bias and its triangle multiplication by cuEquivariance's kernels."""
        import cuequivariance_ops_torch as cueq
        from openfold.model import primitives, triangular_multiplicative_update as multiplication
        torch, theirs = self.torch, primitives.Attention.forward

        def attend(layer, q_x, kv_x, biases=None, **flags):
            if not biases or len(biases) != 2 or layer.c_hidden % 8:
                return theirs(layer, q_x, kv_x, biases=biases, **flags)
            q, k, v = layer._prep_qkv(q_x, kv_x, apply_scale=False)  # [*, N, heads, n, c]
            five = lambda t: t.reshape(-1, *t.shape[-4:])
            o = cueq.triangle_attention(five(q), five(k), five(v), five(biases[1]), mask=five(biases[0] > -1),
                                        scale=layer.c_hidden ** -0.5)
            return layer._wrap_up(o.reshape(q.shape).transpose(-2, -3), q_x)

        def multiply(layer, z, mask=None, inplace_safe=False, _add_with_inplace=False, **flags):
            both = lambda a, b: (torch.cat([a.weight, b.weight]), torch.cat([a.bias, b.bias]))
            p, g = both(layer.linear_a_p, layer.linear_b_p), both(layer.linear_a_g, layer.linear_b_g)
            x = z.reshape(-1, *z.shape[-3:]).contiguous()
            out = cueq.triangle_multiplicative_update(
                x, "outgoing" if layer._outgoing else "incoming", mask=mask.reshape(-1, *z.shape[-3:-1]).to(z.dtype).contiguous(),
                norm_in_weight=layer.layer_norm_in.weight, norm_in_bias=layer.layer_norm_in.bias, p_in_weight=p[0], p_in_bias=p[1],
                g_in_weight=g[0], g_in_bias=g[1], norm_out_weight=layer.layer_norm_out.weight, norm_out_bias=layer.layer_norm_out.bias,
                p_out_weight=layer.linear_z.weight, p_out_bias=layer.linear_z.bias, g_out_weight=layer.linear_g.weight,
                g_out_bias=layer.linear_g.bias).reshape(z.shape)
            return z.add_(out) if inplace_safe and _add_with_inplace else out
        with (unittest.mock.patch.object(primitives.Attention, "forward", attend),
              unittest.mock.patch.object(multiplication.TriangleMultiplicativeUpdate, "forward", multiply)):
            yield

    def adam(self, parameters, how="fused"):
        """f32 parameters of our own shapes' number, and one step of Adam with clipping and the average."""
        torch = self.torch
        average = [p.detach().clone() for p in parameters]
        adam = torch.optim.Adam(parameters, lr=1e-3, eps=1e-6, **{how: True})

        def step():
            torch.nn.utils.clip_grad_norm_(parameters, 0.1, foreach=True)
            adam.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1e-3)
        return step

    def master_parameters(self):
        """93 M in f32, of the blocks' shapes."""
        torch, shapes = self.torch, [p.shape for p in self.plain.Block("sdpa").parameters()]
        blocks = max(1, 48 // self.args.scale)
        return [torch.nn.Parameter(0.02 * torch.randn(s, device=self.device)) for _ in range(blocks) for s in shapes]

    def optimizer(self, how):
        parameters = self.master_parameters()
        for p in parameters:
            p.grad = 1e-3 * self.torch.randn_like(p)
        result = self.time([self.adam(parameters, how)], whole=False, graph=False)
        return {**result, "parameters": sum(p.numel() for p in parameters)}

    def training(self, row, peer):
        torch, S, N = self.torch, row["S"], row["N"]
        E = int(row["arguments"][row["arguments"].index("--n-extra") + 1])
        if peer == "trunk":
            from torch.utils.checkpoint import checkpoint
            run, inputs, weights = self.trunk(S, N, E)
            masters = self.master_parameters()
            for p in masters:
                p.grad = 1e-3 * torch.randn_like(p)
            inputs = [x.requires_grad_() for x in inputs]
            optimize = self.adam(masters)

            def step():
                y = run(*inputs, block=lambda f, *x: checkpoint(f, *x, use_reentrant=False))
                torch.autograd.grad(y, [*inputs, *weights], [torch.ones_like(t) for t in y])
                optimize()
        else:
            model = self.randomised(openfold_model("initial_training", True)).train()
            weights = [p for p in model.parameters() if p.requires_grad]
            masters = [torch.nn.Parameter(p.detach().float()) for p in weights]
            batch, optimize = openfold_features(S, N, E, self.device, torch.bfloat16), self.adam(masters)

            def step():
                out = model(dict(batch))
                losses = [out["sm"][k] for k in ("positions", "frames", "angles")]
                losses += [out[k] for k in ("lddt_logits", "distogram_logits", "masked_msa_logits", "experimentally_resolved_logits")]
                loss = sum(x.float().pow(2).mean() for x in losses)
                for master, gradient in zip(masters, torch.autograd.grad(loss, weights, allow_unused=True)):
                    master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
                optimize()
                with torch.no_grad():
                    torch._foreach_copy_(weights, masters)
        return self.time([step], whole=True, graph=False)


def work(args, rows):
    """The worker: takes jobs, tells of each when it begins and what came of it."""
    say = lambda **entry: print(json.dumps(entry), flush=True)
    import torch
    worker = Worker(args, rows)
    for line in sys.stdin:
        job = json.loads(line)
        say(begun=job)
        start = time.time()
        try:
            result = worker.run(rows[job["row"]], job["peer"])
        except Exception as e:
            text = f"{type(e).__name__}: {e}".replace("\n", " ")
            result = {"error": "out of memory" if "out of memory" in text.lower() else text[:300]}
        say(done=job, result={**result, "took_s": round(time.time() - start, 1)})
        if any(s in result.get("error", "") for s in ("CUDA error", "illegal memory", "launch failure")):
            os._exit(17)  # nothing on this device works any more in this process
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
