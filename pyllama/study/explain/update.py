"""What the optimizer makes of the gradient of the recorded step."""
import copy
from dataclasses import dataclass

import numpy as np

from pyllama import params
from pyllama.study.explain.recording import Recording
from pyllama.study.explain.subject import Subject
from pyllama.training.optim import Optimizer, clip_scale


@dataclass(eq=False)
class Update:
    """The step of the optimizer; all trees have a leaf for each parameter, by name.

    norm, scale     of the gradient, and the factor that clips it
    gradient        before clipping; 0 for a frozen parameter
    vectors         the optimizer's state after the step, such as m and v; 0 for a frozen parameter
    decay           weight decay; 0 where it does not apply
    """
    optimizer: Optimizer
    lr: float
    norm: float
    scale: float
    gradient: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    vectors: dict[str, dict[str, np.ndarray]]
    decay: dict[str, float]


def update(subject: Subject, recording: Recording) -> Update:
    """The update of all parameters, as training.loop.train() computes it.  The subject stays as it is."""
    state, settings = subject.state, subject.settings
    gradient = np.concatenate([recording.grads[name].ravel() for name, _ in params.leaves(state.p)
                               if name in state.trained])
    optimizer, after = copy.deepcopy(state.optimizer), state.flat.copy()
    if optimizer.tables:
        optimizer.tables.touch_by(state.gradients(gradient))
    norm = optimizer.sum_and_norm([gradient])
    scale, lr = clip_scale(norm, settings.max_grad_norm), settings.rate(state.step)
    optimizer.step(after, gradient, lr, settings.weight_decay, scale)

    nothing = params.rebuild(state.p, (np.zeros_like(leaf) for _, leaf in params.leaves(state.p)))

    def by_name(flat, others=nothing):
        return dict(params.leaves(params.over(flat, others, state.trained)))

    decay = np.zeros(gradient.size)
    for part in optimizer.parts:
        decay[part.where] = settings.weight_decay if part.decay is None else part.decay
    return Update(optimizer, lr, norm, scale, by_name(gradient), by_name(state.flat.copy(), state.tree),
                  by_name(after, state.tree),
                  {name: by_name(getattr(optimizer, name)) for name in optimizer.vectors},
                  {name: float(leaf.flat[0]) for name, leaf in by_name(decay).items()})
