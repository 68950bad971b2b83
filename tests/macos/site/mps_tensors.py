"""PyTorch as it is on a Mac: with FAKE_METAL a device "mps", whose tensors the CPU computes.

A tensor on it is a copy of one of the host, and so are its results. NumPy does not read it, and no
operation but a copy joins it with a tensor of the host that has a dimension. These rules are not
checked inside `torch.autograd.grad`. Source: torch 2.13, errors of `numpy` and `TensorIterator`.
"""

import os
from functools import wraps

CREATORS = "zeros ones empty full arange eye tensor"


def install(torch):
    """Change `torch`, unless FAKE_NO_MPS leaves it without the device, as a virtual machine may."""
    if "FAKE_METAL" not in os.environ or "FAKE_NO_MPS" in os.environ:
        return
    mps, tensor_to = torch.device("mps"), torch.Tensor.to
    plain = torch._C.DisableTorchFunctionSubclass
    device_of = torch.Tensor.device.__get__

    class OnMPS(torch.Tensor):
        """A tensor on the stand-in device."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), keywords=None):
            """Compute on the CPU what the device can compute."""
            if function == device_of:
                return mps
            if function in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert mps:0 device type tensor to numpy")
            if function == torch.Tensor.cpu:
                return moved(args[0], torch.Tensor)
            copies = function == torch.Tensor.copy_
            if not copies and any(not isinstance(x, cls) and x.ndim for x in tensors(args)):
                raise RuntimeError(
                    f"{function.__name__}: Expected all tensors to be on the same device"
                )
            return super().__torch_function__(function, types, args, on_cpu(keywords or {}))

    def tensors(values):
        if isinstance(values, torch.Tensor):
            yield values
        elif isinstance(values, list | tuple):
            for value in values:
                yield from tensors(value)

    def on_cpu(keywords):
        return {name: value for name, value in keywords.items() if name != "device"}

    def moved(x, kind):
        with plain():
            return x.clone().as_subclass(kind)

    def to(x, *args, **keywords):
        places = [one for one in (*args, keywords.get("device")) if is_device(one)]
        if not places:
            return tensor_to(x, *args, **keywords)
        rest = [one for one in args if not is_device(one)]
        kind = OnMPS if torch.device(places[0]) == mps else torch.Tensor
        result = x if isinstance(x, OnMPS) == (kind is OnMPS) else moved(x, kind)
        keywords = on_cpu(keywords)
        return tensor_to(result, *rest, **keywords) if rest or keywords else result

    def is_device(value):
        return isinstance(value, torch.device | str)

    def creator(make):
        @wraps(make)
        def created(*args, device=None, **keywords):
            if device is None or torch.device(device) != mps:
                return make(*args, device=device, **keywords)
            return make(*args, **keywords).as_subclass(OnMPS)

        return created

    for name in CREATORS.split():
        setattr(torch, name, creator(getattr(torch, name)))
    torch.Tensor.to = to
    torch.backends.mps.is_available = lambda: True
