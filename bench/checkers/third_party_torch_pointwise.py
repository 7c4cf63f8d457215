"""torch.autograd.Functions: norms and activations."""
import torch
from torch.autograd import Function


class RMSNorm(Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        r = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, w, r)
        return w * x * r

    @staticmethod
    def backward(ctx, dy):
        x, w, r = ctx.saved_tensors
        g = dy * w
        dx = r * (g - x * r * r * (g * x).mean(-1, keepdim=True))
        dw = (dy * x * r).reshape(-1, x.shape[-1]).sum(0)
        return dx, dw, None


class LayerNorm(Function):
    @staticmethod
    def forward(ctx, x, w, b, eps):
        mean = x.mean(-1, keepdim=True)
        r = torch.rsqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps)
        normal = (x - mean) * r
        ctx.save_for_backward(normal, w, r)
        return normal * w + b

    @staticmethod
    def backward(ctx, dy):
        normal, w, r = ctx.saved_tensors
        g = dy * w
        dx = r * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True))
        axes = tuple(range(dy.dim() - 1))
        return dx, (dy * normal).sum(axes), dy.sum(axes), None


class GroupNorm(Function):
    """x[B, C, T] in groups of channels."""
    @staticmethod
    def forward(ctx, x, w, groups):
        parts = x.reshape(x.shape[0], groups, -1)
        mean = parts.mean(-1, keepdim=True)
        r = torch.rsqrt(((parts - mean) ** 2).mean(-1, keepdim=True) + 1e-4)
        normal = ((parts - mean) * r).reshape(x.shape)
        ctx.groups = groups
        ctx.save_for_backward(normal, w, r)
        return normal * w[:, None]

    @staticmethod
    def backward(ctx, dy):
        normal, w, r = ctx.saved_tensors
        parts = (dy.shape[0], ctx.groups, -1)
        g, n = (dy * w[:, None]).reshape(parts), normal.reshape(parts)
        dx = r * (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True))
        return dx.reshape(dy.shape), (dy * normal).sum((0, 2)), None


class L2Normalize(Function):
    @staticmethod
    def forward(ctx, x):
        size = torch.sqrt((x * x).sum(-1, keepdim=True))
        y = x / size
        ctx.save_for_backward(y, size)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, size = ctx.saved_tensors
        return (dy - y * (dy * y).sum(-1, keepdim=True)) / size


class SwiGLU(Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return gate * torch.sigmoid(gate) * up

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        s = torch.sigmoid(gate)
        return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


class GeGLU(Function):
    """The approximation by tanh."""
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        u = 0.7978845608028654 * (gate + 0.044715 * gate ** 3)
        return 0.5 * gate * (1 + torch.tanh(u)) * up

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        th = torch.tanh(0.7978845608028654 * (gate + 0.044715 * gate ** 3))
        du = 0.7978845608028654 * (1 + 3 * 0.044715 * gate ** 2)
        slope = 0.5 * (1 + th) + 0.5 * gate * (1 - th ** 2) * du
        return dy * up * slope, dy * 0.5 * gate * (1 + th)


class GELU(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * (1 + torch.erf(x / 2 ** 0.5))

    @staticmethod
    def backward(ctx, dy):
        x, = ctx.saved_tensors
        density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        return dy * (0.5 * (1 + torch.erf(x / 2 ** 0.5)) + x * density)


class SquaredReLU(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx, dy):
        y, = ctx.saved_tensors
        return 2 * dy * y


class Softplus(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.log1p(torch.exp(-x.abs())) + torch.relu(x)

    @staticmethod
    def backward(ctx, dy):
        return dy * torch.sigmoid(ctx.saved_tensors[0])


class Sigmoid(Function):
    """With a rule for forward mode, and setup_context."""
    @staticmethod
    def forward(x):
        return torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, dy):
        y, = ctx.saved_tensors
        return dy * y * (1 - y)

    @staticmethod
    def jvp(ctx, v):
        y, = ctx.saved_tensors
        return v * y * (1 - y)


class Clamp(Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward((x > low) & (x < high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0], None, None
