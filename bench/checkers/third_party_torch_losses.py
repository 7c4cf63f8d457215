"""torch.autograd.Functions: softmax and losses."""
import torch
from torch.autograd import Function


class Softmax(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.softmax(x, -1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, = ctx.saved_tensors
        return y * (dy - (y * dy).sum(-1, keepdim=True))


class LogSumExp(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.logsumexp(x, -1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, y = ctx.saved_tensors
        return torch.exp(x - y[..., None]) * dy[..., None]


class CrossEntropy(Function):
    """The mean over the labels that are not ignored."""
    @staticmethod
    def forward(ctx, logits, labels, ignore_index):
        keep = labels != ignore_index
        log_p = torch.log_softmax(logits, -1)
        picked = log_p.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
        ctx.save_for_backward(log_p, labels, keep)
        return -(picked * keep).sum() / keep.sum()

    @staticmethod
    def backward(ctx, dy):
        log_p, labels, keep = ctx.saved_tensors
        d = torch.exp(log_p)
        d[torch.arange(len(labels)), labels.clamp(min=0)] -= 1
        return d * keep[:, None] * (dy / keep.sum()), None, None


class FusedLinearCrossEntropy(Function):
    """Computes its gradients in the forward pass, so that logits need not be kept."""
    @staticmethod
    def forward(ctx, x, w, labels):
        logits = x @ w.T
        log_p = torch.log_softmax(logits, -1)
        rows = torch.arange(len(labels))
        d = torch.exp(log_p)
        d[rows, labels] -= 1
        d /= len(labels)
        ctx.save_for_backward(d @ w, d.T @ x)
        return -log_p[rows, labels].mean()

    @staticmethod
    def backward(ctx, dy):
        dx, dw = ctx.saved_tensors
        return dx * dy, dw * dy, None


class KLDivergence(Function):
    """KL(q || p) of logits, summed, as in distillation."""
    @staticmethod
    def forward(ctx, p_logits, q_logits):
        log_p, log_q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
        q = torch.exp(log_q)
        ctx.save_for_backward(log_p, log_q)
        return (q * (log_q - log_p)).sum()

    @staticmethod
    def backward(ctx, dy):
        log_p, log_q = ctx.saved_tensors
        p, q, gap = torch.exp(log_p), torch.exp(log_q), log_q - log_p
        return dy * (p - q), dy * q * (gap - (q * gap).sum(-1, keepdim=True))


class Huber(Function):
    @staticmethod
    def forward(ctx, x, y, delta):
        ctx.delta = delta
        gap = x - y
        ctx.save_for_backward(gap)
        return torch.where(gap.abs() < delta, gap * gap / 2, delta * (gap.abs() - delta / 2)).sum()

    @staticmethod
    def backward(ctx, dy):
        d = dy * ctx.saved_tensors[0].clamp(-ctx.delta, ctx.delta)
        return d, -d, None
