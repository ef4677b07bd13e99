"""Does PyTorch compute a gradient here?"""

import safetensors.torch  # noqa: F401
import torch

weight = torch.ones(4, requires_grad=True)
(weight @ torch.arange(4.0)).backward()
assert weight.grad is not None and weight.grad.tolist() == [0.0, 1.0, 2.0, 3.0]
assert torch.version.cuda is None
