"""torch.autograd.Functions: attention and positions, tables, products and recurrences."""
import torch
from torch.autograd import Function


def half_turned(x):
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class RoPE(Function):
    """Rotates the pairs (x[i], x[i + K/2])."""
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return x * cos + half_turned(x) * sin

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return dy * cos - half_turned(dy) * sin, None, None


class InterleavedRoPE(Function):
    """Rotates the pairs (x[2i], x[2i + 1])."""
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return InterleavedRoPE.turned(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return InterleavedRoPE.turned(dy, cos, -sin), None, None

    @staticmethod
    def turned(x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Attention(Function):
    """Causal: q, k, v [B, T, K]."""
    @staticmethod
    def forward(ctx, q, k, v):
        scale = q.shape[-1] ** -0.5
        future = torch.ones(q.shape[1], k.shape[1]).triu(1).bool()
        p = torch.softmax((scale * q @ k.mT).masked_fill(future, float("-inf")), -1)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx, dy):
        q, k, v, p = ctx.saved_tensors
        dp = dy @ v.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * ctx.scale
        return ds @ k, ds.mT @ q, p.mT @ dy


class GroupedAttention(Function):
    """q[B, G, R, T, K] with one head of k, v [B, G, S, K] for R queries.  Like flash attention, it
    returns y and the log-sum-exp."""
    @staticmethod
    def forward(ctx, q, k, v):
        s = torch.einsum("bgrtk,bgsk->bgrts", q, k)
        lse = torch.logsumexp(s, -1)
        y = torch.einsum("bgrts,bgsk->bgrtk", torch.exp(s - lse[..., None]), v)
        ctx.save_for_backward(q, k, v, y, lse)
        return y, lse

    @staticmethod
    def backward(ctx, dy, dlse):
        q, k, v, y, lse = ctx.saved_tensors
        p = torch.exp(torch.einsum("bgrtk,bgsk->bgrts", q, k) - lse[..., None])
        dp = torch.einsum("bgrtk,bgsk->bgrts", dy, v)
        ds = p * (dp - (dy * y).sum(-1, keepdim=True) + dlse[..., None])
        return (torch.einsum("bgrts,bgsk->bgrtk", ds, k), torch.einsum("bgrts,bgrtk->bgsk", ds, q),
                torch.einsum("bgrts,bgrtk->bgsk", p, dy))


class Embedding(Function):
    @staticmethod
    def forward(ctx, table, ids):
        ctx.rows = len(table)
        ctx.save_for_backward(ids)
        return table[ids]

    @staticmethod
    def backward(ctx, dy):
        ids, = ctx.saved_tensors
        d = dy.new_zeros(ctx.rows, dy.shape[-1])
        return d.index_add_(0, ids.flatten(), dy.reshape(-1, dy.shape[-1])), None


class ScatterAdd(Function):
    @staticmethod
    def forward(ctx, x, index, size):
        ctx.save_for_backward(index)
        return x.new_zeros(size, x.shape[1]).index_add(0, index, x)

    @staticmethod
    def backward(ctx, dy):
        return dy[ctx.saved_tensors[0]], None, None


class Linear(Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w.T + b

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        flat = dy.reshape(-1, dy.shape[-1])
        return dy @ w, flat.T @ x.reshape(-1, x.shape[-1]), flat.sum(0)


class Dropout(Function):
    """With a mask that is given, so that the function is the same each time."""
    @staticmethod
    def forward(ctx, x, mask, p):
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return x * mask * ctx.scale

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0] * ctx.scale, None, None


class CausalConv(Function):
    """x[B, C, T] and a filter w[C, K] for each channel."""
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        padded = torch.nn.functional.pad(x, (w.shape[1] - 1, 0))
        return (padded.unfold(-1, w.shape[1], 1) * w[:, None]).sum(-1)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        size = w.shape[1]
        ahead = torch.nn.functional.pad(dy, (0, size - 1)).unfold(-1, size, 1)
        behind = torch.nn.functional.pad(x, (size - 1, 0)).unfold(-1, size, 1)
        return (ahead * w.flip(1)[:, None]).sum(-1), (behind * dy[..., None]).sum((0, 2))


class Scan(Function):
    """h[t] = a[t] h[t-1] + x[t], the recurrence of state-space models."""
    @staticmethod
    def forward(ctx, a, x):
        h = [x[0]]
        for t in range(1, len(x)):
            h.append(a[t] * h[-1] + x[t])
        h = torch.stack(h)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dy):
        a, h = ctx.saved_tensors
        da, dx = torch.zeros_like(a), torch.empty_like(dy)
        carry = torch.zeros_like(dy[0])
        for t in reversed(range(len(dy))):
            dx[t] = dy[t] + carry
            if t:
                da[t] = dx[t] * h[t - 1]
                carry = dx[t] * a[t]
        return da, dx
